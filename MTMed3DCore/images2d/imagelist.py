"""A list of labelled 2D images, and its file (schema ``mtmed3d.imagelist/1``).

Arrays of images are channel-first ``(C, X, Y)``: x counts columns from the left, y rows from the top, in pixels. A box
is ``[x0, y0, x1, y1)`` in them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.json_schema import first_fault
from MTMed3DCore.whole_file import write_whole

SCHEMA = "mtmed3d.imagelist/1"
ACTIVATIONS = ("softmax", "sigmoid")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageCase:
    """One image with what is known of it; what is not known is None, never guessed.

    Args:
        id: unique in the list.
        group: images of one patient or volume share it, and stay in one fold.
        image: file.
        mask: file of the regions, or None.
        boxes: of the lesions; empty where it is known that there are none.
        labels: 0 or 1 for each label of the list.
        fold: number of the fold, or None.
    """

    id: str
    group: str
    image: Path
    mask: Path | None = None
    boxes: tuple[Box, ...] | None = None
    labels: Mapping[str, int] | None = None
    fold: int | None = None


@dataclass(frozen=True)
class Truths:
    """What the cases of a list can know.

    Args:
        regions: name of each region in the order of the network's output, without background.
        values: their values in the masks.
        region_activation: ``"softmax"`` where a pixel has one region or background, ``"sigmoid"`` where each region
            stands for itself.
        labels: names.
        label_activation: ``"softmax"`` where an image has exactly one, ``"sigmoid"`` where each stands for itself.
        boxes: whether any case has boxes.
    """

    regions: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    region_activation: str = "sigmoid"
    labels: tuple[str, ...] = ()
    label_activation: str = "sigmoid"
    boxes: bool = False

    @property
    def channels(self) -> int:
        """Channels of a segmentation: the regions, and with softmax the background before them."""
        return len(self.regions) + (1 if self.regions and self.region_activation == "softmax" else 0)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks for which there is a truth."""
        known = {"segmentation": bool(self.regions), "detection": self.boxes, "grading": bool(self.labels)}
        return tuple(task for task, there in known.items() if there)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Truths:
        """From `to_dict`'s form."""
        given: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain.items()}
        return cls(**given)


@dataclass(frozen=True)
class ImageList:
    """Cases in the order of their ids, and what was left out.

    Args:
        cases: with unique ids.
        truths: what they can know.
        skipped: pairs of a file and a reason.
        notes: what a user of the list should know.
        folds: number of folds; 0 for none.
    """

    cases: tuple[ImageCase, ...]
    truths: Truths
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    folds: int = 0
    sha256: str = field(default="", compare=False)

    def fold(self, number: int) -> tuple[tuple[ImageCase, ...], tuple[ImageCase, ...]]:
        """Training and validation cases of a fold.

        Raises:
            WrongUse: ``fold-unknown``.
        """
        if not 0 <= number < self.folds:
            text = f"The list has no fold {number}."
            raise WrongUse("fold-unknown", text, f"It has {self.folds} folds, counted from 0.")
        inside = tuple(case for case in self.cases if case.fold == number)
        return tuple(case for case in self.cases if case.fold != number), inside

    def write(self, path: Path) -> None:
        """Write the list; files are given relative to its folder."""
        base = path.resolve().parent
        document = {
            "schema": SCHEMA,
            "folds": self.folds,
            "notes": list(self.notes),
            "truths": self.truths.to_dict(),
            "cases": [_document(case, base) for case in self.cases],
            "skipped": [{"path": name, "reason": reason} for name, reason in self.skipped],
        }
        _check(document, path)
        write_whole(path, json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> ImageList:
        """Read a list.

        Raises:
            InputRefused: ``list-damaged``, ``list-file`` (a file that is not there).
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputRefused("list-damaged", f"{path} cannot be read: {error}.", "Make the list again.") from error
        _check(document, path)
        base = path.resolve().parent
        cases = tuple(_case(entry, base) for entry in document["cases"])
        for case in cases:
            for file in (case.image, case.mask):
                if file is not None and not file.is_file():
                    text = f"{path} names {file} for {case.id}, which is not there."
                    raise InputRefused("list-file", text, "Keep the list where it was made, or make it again.")
        skipped = tuple((entry["path"], entry["reason"]) for entry in document["skipped"])
        truths = Truths.from_dict(document["truths"])
        return cls(cases, truths, skipped, tuple(document["notes"]), document["folds"], file_sha256(path))


def is_image_list(path: Path) -> bool:
    """Whether a file is a list of images rather than one of brain studies; False where it cannot be read."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("schema") == SCHEMA


def deal_folds(cases: tuple[ImageCase, ...], folds: int, seed: int) -> tuple[ImageCase, ...]:
    """Give every case a fold; the groups are ordered by the hash of seed and name and dealt out in turn.

    Raises:
        WrongUse: ``folds``, fewer than two or more than there are groups.
    """
    if folds == 0:
        return cases
    groups = sorted({case.group for case in cases}, key=lambda name: sha256(f"{seed}/{name}".encode()).digest())
    if not 2 <= folds <= len(groups):
        text = f"{len(groups)} patients cannot be split into {folds} folds."
        raise WrongUse("folds", text, "Give --folds 2 to the number of patients, or 0 for none.")
    fold_of = {name: place % folds for place, name in enumerate(groups)}
    return tuple(replace(case, fold=fold_of[case.group]) for case in cases)


def _document(case: ImageCase, base: Path) -> dict[str, Any]:
    return {
        "id": case.id,
        "group": case.group,
        "image": Path(os.path.relpath(case.image, base)).as_posix(),
        "mask": None if case.mask is None else Path(os.path.relpath(case.mask, base)).as_posix(),
        "boxes": None if case.boxes is None else [list(box) for box in case.boxes],
        "labels": None if case.labels is None else dict(case.labels),
        "fold": case.fold,
    }


def _case(entry: dict[str, Any], base: Path) -> ImageCase:
    boxes = None if entry["boxes"] is None else tuple((b[0], b[1], b[2], b[3]) for b in entry["boxes"])
    mask = None if entry["mask"] is None else base / entry["mask"]
    return ImageCase(entry["id"], entry["group"], base / entry["image"], mask, boxes, entry["labels"], entry["fold"])


def _check(document: Any, path: Path) -> None:
    fault = first_fault(document, "imagelist-1")
    if fault:
        text = f"{path} is no list of images: {fault}."
        raise InputRefused("list-damaged", text, "Make it with `mtmed3d datalist`.")
    seen: set[str] = set()
    for entry in document["cases"]:
        if entry["id"] in seen:
            raise InputRefused("list-damaged", f"{path} holds the id {entry['id']!r} twice.", "Give each its own id.")
        seen.add(entry["id"])
