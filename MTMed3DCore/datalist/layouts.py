"""Which files of a folder make one case, in the layouts that brain tumour data is handed out in.

* BraTS 2013: each sequence in a folder of its own (``VSD.Brain...``) below the case's;
* BraTS 2017 to 2023: one folder a case, with or without ``HGG`` and ``LGG`` above it;
* Medical Segmentation Decathlon, Task01: ``dataset.json`` with four-dimensional images;
* a case that the extension exported after review: ``case.json`` beside its images.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from MTMed3DCore.datalist.case import Case, ImageFile, Skipped
from MTMed3DCore.datalist.walking import files_below
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.reviewed import CASE_FILE, REJECTED, document_boxes, inside, read_case_document
from MTMed3DCore.sequences import SEQUENCES, SUFFIXES, sequence_of, stem

_LABEL_WORDS = {"seg", "segmentation", "label", "labels", "ot"}
_DERIVED = {"fusion", "machine", "auto", "pred", "prediction"}
"""Words of label maps that no reader drew."""
_TIMEPOINT = (
    re.compile(r"(?P<patient>BraTS-[A-Z]+-\d+)-\d{3}$", re.IGNORECASE),
    re.compile(r"(?P<patient>Brats1[5-9]_.+)_\d$", re.IGNORECASE),
    re.compile(r"(?P<patient>brats_20\d\d_pat\d+)_\d$", re.IGNORECASE),
)


class Origin(IntEnum):
    """Who stands behind a truth; the higher one stands over the lower."""

    NOBODY = 0
    MODEL = 1
    DATA = 2
    READER = 3


_ORIGIN_OF = {"reader": Origin.READER, "model": Origin.MODEL}
"""By the words of ``case.json``."""


@dataclass(frozen=True)
class Located:
    """A case and where it was found.

    Args:
        case: without boxes yet, unless it was reviewed.
        folder: its own or that of its data set; what lies between it and the root may state the grade.
        regions, grade: who stands behind the label map and the grade.
        reviewed: exported after review, under a name that the reader or the program gave it.
        fingerprint: of the voxels of T1ce, once they are read.
    """

    case: Case
    folder: Path
    regions: Origin
    grade: Origin = Origin.NOBODY
    reviewed: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class Found:
    """What a layout gave: cases in the order of their names, several of one name included, and what is none and why."""

    cases: tuple[Located, ...]
    skipped: tuple[Skipped, ...]


def patient_of(case_id: str) -> str:
    """The patient that a case's name names: BraTS marks time points by a last number."""
    for pattern in _TIMEPOINT:
        match = pattern.match(case_id)
        if match:
            return match["patient"]
    return case_id


def find_cases(root: Path) -> Found:
    """Every case below a folder."""
    cases: list[Located] = []
    skipped: list[Skipped] = []
    files = files_below(root)
    decathlons = {file.parent for file in files if file.name == "dataset.json"}
    for place in sorted(decathlons):
        cases += [Located(case, place, Origin.DATA) for case in _decathlon(place, skipped)]
    for place, images in sorted(_groups(files, decathlons).items()):
        made = _reviewed(place) if (place / CASE_FILE).is_file() else _case(place, images)
        if isinstance(made, Skipped):
            skipped.append(made)
        else:
            cases.append(made)
    return Found(tuple(sorted(cases, key=lambda each: each.case.id)), tuple(skipped))


def _groups(files: list[Path], decathlons: set[Path]) -> dict[Path, list[Path]]:
    """Image files by the folder of their case."""
    groups: dict[Path, list[Path]] = defaultdict(list)
    for file in files:
        if not file.name.lower().endswith(SUFFIXES) or not file.is_file():
            continue
        if not decathlons.isdisjoint(file.parents):
            continue
        place = file.parent.parent if file.parent.name.upper().startswith("VSD.") else file.parent
        groups[place].append(file)
    return groups


def is_label(file: Path) -> bool:
    """Whether a file's name says that it is a label map which somebody drew."""
    name = stem(file)
    words = set(re.split(r"[^a-z0-9]+", name))
    # BraTS 2020 hands out its case 355 with the label map W39_1998.09.19_Segm.nii.
    return (bool(words & _LABEL_WORDS) or name.endswith("segm")) and not words & _DERIVED


def _reviewed(place: Path) -> Located | Skipped:
    """A case that was exported after review: the accepted boxes, and the grade that stands at its end."""
    try:
        document = read_case_document(place)
        images = {name: ImageFile(inside(place, document["images"][name]).resolve()) for name in SEQUENCES}
        label = ImageFile(inside(place, document["label"]).resolve())
    except InputRefused as error:
        return Skipped(str(place), error.text)
    boxes = tuple(each.box for each in document_boxes(document) if each.state != REJECTED)
    grade, by = document["grade"]["label"], document["grade"]["by"]
    regions = document["regions"]["by"]
    source = f"reviewed case: regions by the {regions}" + (f", grade by the {by}" if grade else "")
    name = document["id"]
    case = Case(name, patient_of(name), images, label, "BRATS_2017", grade, boxes, source=source)
    graded = Origin.NOBODY if grade is None else _ORIGIN_OF[by]
    return Located(case, place, _ORIGIN_OF[regions], graded, reviewed=True)


def _case(place: Path, files: list[Path]) -> Located | Skipped:
    by_sequence: dict[str, list[Path]] = {name: [] for name in SEQUENCES}
    for file in files:
        sequence = sequence_of(file)
        if sequence is not None:
            by_sequence[sequence].append(file)
    seen = ", ".join(file.name for file in files)
    missing = [name for name, found in by_sequence.items() if not found]
    several = [name for name, found in by_sequence.items() if len(found) > 1]
    if missing or several:
        what = [f"no {name}" for name in missing] + [f"several {name}" for name in several]
        return Skipped(str(place), f"{', '.join(what)} (it holds: {seen})")
    labels = [file for file in files if is_label(file)]
    if len(labels) > 1:
        return Skipped(str(place), f"several label maps: {', '.join(file.name for file in labels)}")
    images = {name: ImageFile(found[0].resolve()) for name, found in by_sequence.items()}
    label = ImageFile(labels[0].resolve()) if labels else None
    old = any(file.parent != place for file in files)
    source = "label map beside the images" if labels else "no label map"
    case = Case(place.name, patient_of(place.name), images, label, "BRATS_2013" if old else None, source=source)
    return Located(case, place, Origin.DATA if labels else Origin.NOBODY)


def _decathlon(place: Path, skipped: list[Skipped]) -> Iterator[Case]:
    """Cases of a Decathlon folder whose images hold the four sequences."""
    try:
        described: dict[str, Any] = json.loads((place / "dataset.json").read_text(encoding="utf-8"))
        channels = {int(number): sequence_of(Path(f"{name}.nii")) for number, name in described["modality"].items()}
        entries = list(described["training"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        skipped.append(Skipped(str(place / "dataset.json"), f"no description of a Decathlon task ({error!r})"))
        return
    index_of = {sequence: number for number, sequence in channels.items() if sequence is not None}
    if set(index_of) != set(SEQUENCES):
        names = ", ".join(map(str, described["modality"].values()))
        skipped.append(Skipped(str(place), f"its images hold {names}, not T1, T1ce, T2 and FLAIR"))
        return
    for entry in entries:
        try:
            image, label = (place / entry[key] for key in ("image", "label"))
            absent = next((path for path in (image, label) if not path.is_file()), None)
        except (KeyError, TypeError, OSError):  # no pair of names, or names that no file can have
            skipped.append(Skipped(str(place / "dataset.json"), f"its entry {entry!r} names no image with a label map"))
            continue
        if absent is not None:
            skipped.append(Skipped(str(absent), "named in dataset.json, but not there"))
            continue
        images = {name: ImageFile(image.resolve(), index_of[name]) for name in SEQUENCES}
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        yield Case(name, name, images, ImageFile(label.resolve()), "MSD", source="Decathlon label map")
