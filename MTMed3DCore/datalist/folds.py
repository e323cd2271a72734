"""Folds for cross-validation: by patient, balanced by grade, the same on every machine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from MTMed3DCore.datalist.case import Case
from MTMed3DCore.errors import WrongUse


def assign_folds(cases: Sequence[Case], folds: int, seed: int = 0) -> tuple[Case, ...]:
    """Give every case its fold.

    All studies of a patient go into one fold. Within each grade (and among the ungraded) the patients are ordered by
    the hash of seed and name, and dealt out in turn, so that the counts of any grade differ by at most one between
    folds. A hash gives the same folds on every machine and whatever order the cases come in.

    Args:
        cases: of one list.
        folds: at least 2, or 0 for none.
        seed: another one gives other folds.

    Raises:
        WrongUse: ``folds``, fewer than two or more than there are patients.
    """
    if folds == 0:
        return tuple(replace(case, fold=None) for case in cases)
    grades: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        grades[case.patient].append(case.grade or "")
    if not 2 <= folds <= len(grades):
        text = f"{len(grades)} patients cannot be split into {folds} folds."
        raise WrongUse("folds", text, "Give --folds 2 to the number of patients, or 0 for none.")
    strata: dict[str, list[str]] = defaultdict(list)
    for patient, given in grades.items():
        # A patient whose studies differ in grade counts where most of them are, the higher grade first.
        strata[max(Counter(given).items(), key=lambda item: (item[1], item[0] == "HGG", item[0]))[0]].append(patient)
    fold_of: dict[str, int] = {}
    dealt = 0
    for grade in sorted(strata):
        for patient in sorted(strata[grade], key=lambda name: sha256(f"{seed}/{name}".encode()).digest()):
            fold_of[patient] = dealt % folds
            dealt += 1
    return tuple(replace(case, fold=fold_of[case.patient]) for case in cases)
