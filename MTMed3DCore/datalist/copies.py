"""Cases of the same images under several names: one patient, and the best label map in place of the others.

A study that was corrected in 3D Slicer comes back under another name. Beside its original it would be a second patient,
whose copies may land in different folds, and each would train against the other's labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import nibabel
import numpy as np

from MTMed3DCore.datalist.case import Case, Skipped
from MTMed3DCore.datalist.layouts import Located, Origin
from MTMed3DCore.volume import Volume

_WHY = {
    Origin.READER: "a reader has corrected its regions",
    Origin.DATA: "its label map came with the data",
    Origin.MODEL: "it has regions, if only the model's",
}


@dataclass(frozen=True)
class Settled:
    """What is left of the cases.

    Args:
        cases: with unique ids; those of the same images have one patient.
        skipped: the others, with reasons.
        copies: how many of the cases show the images of another one.
    """

    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...]
    copies: int


def fingerprint(volume: Volume) -> str:
    """What the voxels of an image are known by, in whatever type, compression and order of axes a file keeps them."""
    upright = nibabel.apply_orientation(volume.array, nibabel.io_orientation(volume.grid.affine))
    voxels = np.ascontiguousarray(upright, dtype="<f4")
    digest = sha256(str(voxels.shape).encode())
    digest.update(voxels.data)
    return digest.hexdigest()


def settle_copies(found: Sequence[Located]) -> Settled:
    """Keep, of cases of the same images, those with the best label map, and of cases of one name the best.

    A reader's regions stand over a label map that came with the data, that over the model's regions, and these over
    none. What is kept takes the best known grade of its copies, by the same order.

    Args:
        found: with their `fingerprint`; of two that are equally good the first stays where only one can.
    """
    groups: dict[str, list[Located]] = defaultdict(list)
    for each in found:
        groups[each.fingerprint].append(each)
    patients = _patients(found, groups.values())
    kept: list[Located] = []
    skipped = []
    for group in groups.values():
        best, graded = max(group, key=lambda each: each.regions), max(group, key=lambda each: each.grade)
        for each in group:
            if each.regions < best.regions:
                why = f"the same images as {best.case.id} in {best.folder}, which is kept: {_WHY[best.regions]}"
                skipped.append(Skipped(str(each.folder), f"{each.case.id} shows {why}"))
                continue
            case = replace(each.case, patient=patients[each.case.patient])
            if each.grade < graded.grade:
                source = f"{case.source}; the grade is that of {graded.case.id}"
                case = replace(case, grade=graded.case.grade, source=source)
            kept.append(replace(each, case=case))
    named: dict[str, Located] = {}
    for each in sorted(kept, key=lambda each: -each.regions):
        other = named.setdefault(each.case.id, each)
        if other is not each:
            text = f"another case is called {each.case.id} as well: {other.folder}"
            skipped.append(Skipped(str(each.folder), text))
    cases = tuple(sorted((each.case for each in named.values()), key=lambda case: case.id))
    return Settled(cases, tuple(skipped), len(named) - len({each.fingerprint for each in named.values()}))


def _patients(found: Iterable[Located], groups: Iterable[Sequence[Located]]) -> dict[str, str]:
    """The one name of each patient: the first that the data themselves give, rather than one of an export."""
    given = {each.case.patient for each in found if not each.reviewed}
    same = {each.case.patient: each.case.patient for each in found}

    def first(name: str) -> str:
        while same[name] != name:
            name = same[name]
        return name

    for group in groups:
        names = sorted({first(each.case.patient) for each in group}, key=lambda name: (name not in given, name))
        same |= dict.fromkeys(names, names[0])
    return {name: first(name) for name in same}
