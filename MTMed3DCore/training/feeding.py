"""Which patch comes when: a function of seed and number alone, so that a resumed run sees what it would have seen."""

from __future__ import annotations

import os
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
        if case.label is None and case.boxes is None:
            size = largest_patch(self.settings)
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


def largest_patch(settings: TrainSettings) -> int:
    """Side in voxels of the widest patches that a run draws."""
    return settings.wide_patch if settings.wide_share else settings.patch


def trains(case: Case, cache: ExampleCache, settings: TrainSettings) -> bool:
    """Whether a patch of a case can have a truth for one of the tasks; a grade counts where the patch shows enough."""
    known = {"segmentation": case.label is not None, "detection": case.boxes is not None, "grading": False}
    if any(known[task] for task in settings.tasks):
        return True
    if "grading" not in settings.tasks or case.grade is None:
        return False
    if case.label is not None or case.boxes:
        return True
    place = np.random.default_rng(settings.seed)
    return cut_patch(cache.load(case), largest_patch(settings), place, varied=False).target.grade is not None


def check_share(settings: TrainSettings, team: Team) -> None:
    """Refuse a batch that cannot be dealt out evenly.

    Raises:
        WrongUse: ``batch-share``.
    """
    if settings.batch % team.size:
        text = f"A batch of {settings.batch} patches cannot be shared by {team.size} processes."
        raise WrongUse("batch-share", text, f"Give --batch {team.size}, or a multiple of it.")


def loader_from(patches: CasePatches | ImageBatches, first_step: int, team: Team) -> DataLoader[Any]:
    """This process's share of the patches, in their order from a step on, cut by the settings' number of workers.

    There are no more of them than cores: the others would wait, and torch warns of them. A patch is a function of its
    number alone, and they come in the order of their numbers, whoever cuts them.
    """
    settings = patches.settings
    numbers = range(first_step * settings.batch, settings.steps * settings.batch)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(settings.workers, cores)
    return DataLoader(
        patches,
        batch_size=None,
        sampler=team.share(numbers),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
