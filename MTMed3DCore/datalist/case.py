"""A list of labelled studies, and its file (schema ``mtmed3d.datalist/1``)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.geometry import WorldBox
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.json_schema import first_fault
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.whole_file import write_whole

SCHEMA = "mtmed3d.datalist/1"
GRADES = ("LGG", "HGG")


@dataclass(frozen=True)
class ImageFile:
    """A file, and which of its volumes is meant.

    Args:
        path: absolute.
        index: of the last axis in a four-dimensional file; None where the file is one volume.
    """

    path: Path
    index: int | None = None


@dataclass(frozen=True)
class Case:
    """One study with what is known of it; what is not known is None, never guessed.

    Args:
        id: unique in the list.
        patient: studies of one patient share it, and stay in one fold.
        images: file of each sequence.
        label: label map, or None.
        convention: name of a `LabelConvention`, or None to recognise it from the values.
        grade: ``"HGG"``, ``"LGG"`` or None.
        boxes: one for each lesion, RAS mm; None where nobody drew boxes and there is no label to take them from.
        fold: number of the fold, or None.
        source: what the grade and the label come from, in words.
    """

    id: str
    patient: str
    images: Mapping[str, ImageFile]
    label: ImageFile | None = None
    convention: str | None = None
    grade: str | None = None
    boxes: tuple[WorldBox, ...] | None = None
    fold: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Skipped:
    """A folder or file that is not in the list, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class DataList:
    """Cases in the order of their names, and what was left out.

    Args:
        cases: with unique ids.
        skipped: with reasons.
        notes: what a user of the list should know.
        folds: number of folds; 0 for none.
        seed: of the folds.
    """

    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    folds: int = 0
    seed: int = 0
    sha256: str = field(default="", compare=False)

    def fold(self, number: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """Training and validation cases of a fold.

        Raises:
            WrongUse: ``fold-unknown``.
        """
        if self.folds == 0:
            remedy = "Train with --all-cases, evaluate without --fold, or make the list again with --folds."
            raise WrongUse("fold-unknown", f"The list has no folds, and so no fold {number}.", remedy)
        if not 0 <= number < self.folds:
            raise WrongUse("fold-unknown", f"The list has no fold {number}.", f"Choose 0 to {self.folds - 1}.")
        inside = tuple(case for case in self.cases if case.fold == number)
        return tuple(case for case in self.cases if case.fold != number), inside

    def write(self, path: Path) -> None:
        """Write the list; files are given relative to its folder where they lie below it or beside it."""
        base = path.resolve().parent
        document = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "folds": self.folds,
            "seed": self.seed,
            "notes": list(self.notes),
            "cases": [_case_document(case, base) for case in self.cases],
            "skipped": [{"path": each.path, "reason": each.reason} for each in self.skipped],
        }
        _check(document, str(path))
        write_whole(path, json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, *, complete: bool = True) -> DataList:
        """Read a list.

        Args:
            path: of the list.
            complete: refuse the list where a file that it names is not there.

        Raises:
            InputRefused: ``list-damaged`` (no JSON, or not of the schema), ``list-id`` (an id twice),
                ``list-file`` (a file that is not there).
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputRefused("list-damaged", f"{path} cannot be read: {error}.", "Make the list again.") from error
        _check(document, str(path))
        base = path.resolve().parent
        try:
            cases = tuple(_case(entry, base) for entry in document["cases"])
        except ValueError as error:  # what a schema cannot say of numbers
            text = f"{path} has boxes or files that cannot be: {error}"
            raise InputRefused("list-damaged", text, "Make the list again.") from error
        _check_cases(cases, path, complete)
        skipped = tuple(Skipped(entry["path"], entry["reason"]) for entry in document["skipped"])
        notes = tuple(document["notes"])
        return cls(cases, skipped, notes, document["folds"], document["seed"], file_sha256(path))

    def with_cases(self, cases: tuple[Case, ...]) -> DataList:
        """The same list with other cases."""
        return replace(self, cases=cases)


def _check_cases(cases: tuple[Case, ...], path: Path, complete: bool) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise InputRefused("list-id", f"{path} holds the id {case.id!r} twice.", "Give every case its own id.")
        seen.add(case.id)
        for file in [*case.images.values(), *([case.label] if case.label else [])]:
            if complete and not file.path.is_file():
                text = f"{path} names {file.path} for {case.id}, which is not there."
                raise InputRefused("list-file", text, "Keep the list where it was made, or make it again.")


def _case_document(case: Case, base: Path) -> dict[str, Any]:
    boxes = None if case.boxes is None else [box_document(box) for box in case.boxes]
    return {
        "id": case.id,
        "patient": case.patient,
        "images": {name: _reference(case.images[name], base) for name in SEQUENCES},
        "label": None if case.label is None else _reference(case.label, base),
        "convention": case.convention,
        "grade": case.grade,
        "boxes": boxes,
        "fold": case.fold,
        "source": case.source,
    }


def _case(entry: Mapping[str, Any], base: Path) -> Case:
    boxes = entry["boxes"]
    return Case(
        entry["id"],
        entry["patient"],
        {name: _image_file(entry["images"][name], base) for name in SEQUENCES},
        None if entry["label"] is None else _image_file(entry["label"], base),
        entry["convention"],
        entry["grade"],
        None if boxes is None else tuple(_box(box) for box in boxes),
        entry["fold"],
        entry["source"],
    )


def box_document(box: WorldBox) -> dict[str, Any]:
    """A box as in ``findings.json``: centre and size in mm, one axis a row, RAS."""
    return {
        "center_ras_mm": [round(float(v), 4) for v in box.center],
        "size_mm": [round(float(v), 4) for v in box.size],
        "axes_ras": [[round(float(v), 8) for v in axis] for axis in box.axes],
    }


def _box(entry: Mapping[str, Any]) -> WorldBox:
    return WorldBox(np.array(entry["center_ras_mm"]), np.array(entry["size_mm"]), np.array(entry["axes_ras"]))


def _reference(file: ImageFile, base: Path) -> str:
    try:
        relative = Path(os.path.relpath(file.path, base)).as_posix()
    except ValueError:  # another drive
        relative = file.path.as_posix()
    return relative if file.index is None else f"{relative}#{file.index}"


def _image_file(reference: str, base: Path) -> ImageFile:
    name, mark, index = reference.rpartition("#")
    path, number = (name, int(index)) if mark and index.isdigit() else (reference, None)
    return ImageFile(Path(os.path.normpath(base / path)), number)


def _check(document: Any, where: str) -> None:
    fault = first_fault(document, "datalist-1")
    if fault is not None:
        raise InputRefused("list-damaged", f"{where} is no data list: {fault}.", "Make it again.")
