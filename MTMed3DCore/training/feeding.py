"""Which patch comes when: a function of seed and number alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from MTMed3DCore.datalist.case import Case
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.training.augmentation import Augmentation
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.examples import Example, ExampleCache
from MTMed3DCore.training.patches import Patch, cut_patch
from MTMed3DCore.training.settings import CaseSettings, TrainSettings

if TYPE_CHECKING:
    from MTMed3DCore.images2d.feeding import ImageBatches

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
        self.augmentation = Augmentation(settings.augmentation)
        self._kept: OrderedDict[str, Example] = OrderedDict()

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch

    def __getitem__(self, number: int) -> Patch:
        epoch, place = divmod(number, len(self.cases))
        case = self.cases[self._order(epoch)[place]]
        rng = np.random.default_rng((self.settings.seed, 1, number))
        wide = rng.random() < self.settings.wide_share
        size = self.settings.wide_patch if wide else self.settings.patch
        return self.augmentation(cut_patch(self._example(case), size, rng, varied=False), rng)

    def _order(self, epoch: int) -> list[int]:
        order: list[int] = np.random.default_rng((self.settings.seed, 0, epoch)).permutation(len(self.cases)).tolist()
        return order

    def _example(self, case: Case) -> Example:
        if case.id not in self._kept:
            self._kept[case.id] = self.cache.load(case)
            if len(self._kept) > KEPT_EXAMPLES:
                self._kept.popitem(last=False)
        return self._kept[case.id]


def check_share(settings: TrainSettings, team: Team) -> None:
    """Refuse a batch that cannot be dealt out evenly.

    Raises:
        WrongUse: ``batch-share``.
    """
    if settings.batch % team.size:
        text = f"A batch of {settings.batch} patches cannot be shared by {team.size} processes."
        raise WrongUse("batch-share", text, f"Give --batch {team.size}, or a multiple of it.")


def loader_from(patches: CasePatches | ImageBatches, first_step: int, team: Team) -> DataLoader[Any]:
    """This process's share of the patches, in their order from a step on, cut by the settings' number of workers."""
    settings = patches.settings
    numbers = range(first_step * settings.batch, settings.steps * settings.batch)
    workers = settings.workers
    return DataLoader(
        patches,
        batch_size=None,
        sampler=team.share(numbers),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
