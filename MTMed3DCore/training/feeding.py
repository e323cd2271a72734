"""Which patch comes when: a function of seed and number alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from torch.utils.data import DataLoader, Dataset

from MTMed3DCore.datalist.case import Case
from MTMed3DCore.training.examples import Example, ExampleCache
from MTMed3DCore.training.patches import Patch, cut_patch
from MTMed3DCore.training.settings import CaseSettings

KEPT_EXAMPLES = 12
"""Studies that each feeding process keeps in memory."""


class CasePatches(Dataset[Patch]):
    """Patch number i of a run.

    Every case comes once an epoch, in an order that changes from epoch to epoch.

    Args:
        cases: of training.
        cache: where they are prepared.
        settings: of the run.
    """

    def __init__(self, cases: Sequence[Case], cache: ExampleCache, settings: CaseSettings) -> None:
        self.cases, self.cache, self.settings = list(cases), cache, settings
        self._kept: OrderedDict[str, Example] = OrderedDict()

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch

    def __getitem__(self, number: int) -> Patch:
        epoch, place = divmod(number, len(self.cases))
        case = self.cases[self._order(epoch)[place]]
        rng = np.random.default_rng((self.settings.seed, 1, number))
        wide = rng.random() < self.settings.wide_share
        return cut_patch(self._example(case), self.settings.wide_patch if wide else self.settings.patch, rng)

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng((self.settings.seed, 0, epoch)).permutation(len(self.cases)).tolist()
        return order

    def _example(self, case: Case) -> Example:
        if case.id not in self._kept:
            self._kept[case.id] = self.cache.load(case)
            if len(self._kept) > KEPT_EXAMPLES:
                self._kept.popitem(last=False)
        return self._kept[case.id]


def loader_from(patches: CasePatches, first_step: int) -> DataLoader[Patch]:
    """Patches in their order from a step on, cut by the settings' number of processes."""
    settings = patches.settings
    numbers = range(first_step * settings.batch, settings.steps * settings.batch)
    workers = settings.workers
    return DataLoader(
        patches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
