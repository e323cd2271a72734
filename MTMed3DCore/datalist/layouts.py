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
from pathlib import Path
from typing import Any

from MTMed3DCore.datalist.case import Case, ImageFile, Skipped
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


@dataclass(frozen=True)
class Found:
    """What a layout gave.

    Args:
        cases: without grade or boxes yet.
        skipped: with reasons.
        folders: where the cases lie, by id, for grades that a folder's name states.
    """

    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...]
    folders: dict[str, Path]


def patient_of(case_id: str) -> str:
    """The patient that a case's name names: BraTS marks time points by a last number."""
    for pattern in _TIMEPOINT:
        match = pattern.match(case_id)
        if match:
            return match["patient"]
    return case_id


def find_cases(root: Path) -> Found:
    """Every case below a folder, in the order of the names."""
    cases: list[Case] = []
    skipped: list[Skipped] = []
    folders: dict[str, Path] = {}
    decathlons = {path.parent for path in root.rglob("dataset.json")}
    for place in sorted(decathlons):
        for case in _decathlon(place, skipped):
            cases.append(case)
            folders[case.id] = place
    for place, files in sorted(_groups(root, decathlons).items()):
        made = _case(place, files)
        if isinstance(made, Skipped):
            skipped.append(made)
        elif made.id in folders:
            skipped.append(Skipped(str(place), f"another case is called {made.id} as well: {folders[made.id]}"))
        else:
            cases.append(made)
            folders[made.id] = place
    return Found(tuple(sorted(cases, key=lambda case: case.id)), tuple(skipped), folders)


def _groups(root: Path, decathlons: set[Path]) -> dict[Path, list[Path]]:
    """Image files by the folder of their case."""
    groups: dict[Path, list[Path]] = defaultdict(list)
    for file in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if hidden or not file.name.lower().endswith(SUFFIXES) or not file.is_file():
            continue
        if not decathlons.isdisjoint(file.parents):
            continue
        place = file.parent.parent if file.parent.name.upper().startswith("VSD.") else file.parent
        groups[place].append(file)
    return groups


def is_label(file: Path) -> bool:
    """Whether a file's name says that it is a label map which somebody drew."""
    words = set(re.split(r"[^a-z0-9]+", stem(file)))
    return bool(words & _LABEL_WORDS) and not words & _DERIVED


def _reviewed(place: Path) -> Case | Skipped:
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
    return Case(document["id"], patient_of(document["id"]), images, label, "BRATS_2017", grade, boxes, source=source)


def _case(place: Path, files: list[Path]) -> Case | Skipped:
    if (place / CASE_FILE).is_file():
        return _reviewed(place)
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
    return Case(place.name, patient_of(place.name), images, label, "BRATS_2013" if old else None, source=source)


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
        image, label = (place / entry[key] for key in ("image", "label"))
        absent = next((path for path in (image, label) if not path.is_file()), None)
        if absent is not None:
            skipped.append(Skipped(str(absent), "named in dataset.json, but not there"))
            continue
        images = {name: ImageFile(image.resolve(), index_of[name]) for name in SEQUENCES}
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        yield Case(name, name, images, ImageFile(label.resolve()), "MSD", source="Decathlon label map")
