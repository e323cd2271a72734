"""From a folder of images, masks and tables to a list.

Which file is an image and which a mask is told by the names of folders (``images`` and ``masks``, ``..._Data`` and
``..._GroundTruth``) and by the ends of names (``_segmentation``, ``_mask``); they belong together by what is left of
the name. So the layouts of ISIC, of slices of RETOUCH volumes in folders, of mammograms with drawn lesions, and of
chest radiographs with a table of boxes are all read by one rule. `docs/families.md` shows them.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.images2d.imagelist import Box, ImageCase, ImageList, Truths, deal_folds
from MTMed3DCore.images2d.pixels import SUFFIXES, boxes_of_mask, image_size, read_mask
from MTMed3DCore.progress import Progress, silent

MASK_FOLDER = re.compile(r"mask|label|segmentation|ground_?truth|annotation|reference|^gt$", re.IGNORECASE)
IMAGE_FOLDER = re.compile(r"(^|_)(images?|imgs?|png|tiff?|photos?|scans?|data)$|^input", re.IGNORECASE)
MASK_END = re.compile(r"[-_](segmentation|mask|seg|gt|label|reference|roi)$", re.IGNORECASE)
IGNORED_END = re.compile(r"[-_]superpixels$", re.IGNORECASE)
SPLIT = re.compile(r"(^|_)(train(ing)?|val(id(ation)?)?|test)(_|$)", re.IGNORECASE)
ID_COLUMNS = ("image_id", "image", "id", "name", "file", "filename", "patientid", "image_name")
GROUP_COLUMNS = ("patient_id", "patient", "subject", "subject_id")
BOX_COLUMNS = (("x", "y", "width", "height"), ("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"))
REGION_TABLE = "regions.csv"
"""Optional: columns ``value`` and ``name``, the regions of the masks."""


@dataclass
class _Row:
    """What the tables say of one image."""

    group: str | None = None
    boxes: list[Box] | None = None
    labels: dict[str, int] | None = None
    classes: dict[str, str] | None = None


def build_image_list(root: Path, *, folds: int = 5, seed: int = 0, progress: Progress = silent) -> ImageList:
    """List every image below a folder with what is known of it.

    Args:
        root: folder.
        folds, seed: see `deal_folds`; where folders are named after training, validation and test, the folder decides:
            fold 0 holds what is not for training.
        progress: told as stage ``read``, image by image.

    Raises:
        InputRefused: ``folder-missing``, ``no-cases``, and whatever a table is refused for.
        WrongUse: ``folds``.
    """
    if not root.is_dir():
        raise InputRefused("folder-missing", f"{root} is no folder.", "Give a folder with images.")
    images, masks, skipped = _files(root)
    if not images:
        text = f"{root} holds no image."
        raise InputRefused("no-cases", text, f"Give a folder with {', '.join(SUFFIXES)} files.")
    rows = _tables(root, {Path(key).name for key in images})
    found: list[tuple[ImageCase, np.ndarray | None]] = []
    seen: set[int] = set()
    for number, (key, path) in enumerate(sorted(images.items())):
        progress("read", number / len(images), key)
        row = rows.get(Path(key).name, _Row())
        try:
            columns_rows = image_size(path)
            mask = read_mask(masks[key]) if key in masks else None
            if mask is not None and mask.shape != columns_rows:
                text = f"The mask {masks[key]} has {mask.shape} pixels, its image {columns_rows}."
                raise InputRefused("mask-size", text, "Masks must have the size of their images.")
        except InputRefused as error:
            skipped.append((str(path), error.text))
            continue
        seen |= set() if mask is None else {int(v) for v in np.unique(mask) if v}
        boxes = tuple(row.boxes) if row.boxes is not None else None if mask is None else boxes_of_mask(mask)
        folders = "/".join(part for part in Path(key).parts[:-1] if not _split(Path(part, "-")))
        group = row.group or folders or key
        case = ImageCase(key, group, path, masks.get(key), boxes, row.labels)
        found.append((case, mask))
    if not found:
        first = f" The first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise InputRefused("no-cases", f"{root} holds no image that can be read.{first}", "Give another folder.")
    regions, values = _regions(root, sorted(seen))
    labels, activation, cases = _labels([case for case, _ in found], rows)
    notes: list[str] = []
    if not labels and len(regions) > 1:
        labels, activation = regions, "sigmoid"
        cases = [_labelled_by_mask(case, mask, regions, values) for case, mask in found]
        notes.append("No table gives labels; which regions an image shows serves as its labels.")
    softmax = len(regions) > 1
    truths = Truths(
        regions, values, "softmax" if softmax else "sigmoid", labels, activation, any(case.boxes for case in cases)
    )
    for what, lacking in (
        ("mask", sum(c.mask is None for c in cases)),
        ("label", sum(c.labels is None for c in cases)),
    ):
        if 0 < lacking < len(cases):
            notes.append(f"{lacking} of {len(cases)} images have no {what}; they do not train or measure it.")
    progress("read", 1.0, f"{len(cases)} images")
    kept, count = _folds(tuple(cases), root, folds, seed, notes)
    return ImageList(kept, truths, tuple(skipped), tuple(notes), count)


def _files(root: Path) -> tuple[dict[str, Path], dict[str, Path], list[tuple[str, str]]]:
    """Images and masks by what their names share, and the files that were left out."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    skipped: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in parts):
            continue
        if IGNORED_END.search(path.stem):
            continue
        is_mask = bool(MASK_END.search(path.stem)) or any(MASK_FOLDER.search(part) for part in parts[:-1])
        kept = [p for p in parts[:-1] if not (MASK_FOLDER.search(p) or IMAGE_FOLDER.search(p))]
        key = "/".join([*kept, MASK_END.sub("", path.stem)])
        place = masks if is_mask else images
        if key in place:
            skipped.append((str(path), f"another {'mask' if is_mask else 'image'} is called {key} as well"))
        else:
            place[key] = path
    skipped += [(str(path), "a mask without an image") for key, path in masks.items() if key not in images]
    return images, masks, skipped


def _tables(root: Path, stems: set[str]) -> dict[str, _Row]:
    """What the CSV files below a folder say, by the image's name without its ending.

    Raises:
        InputRefused: ``table-damaged``, ``table-box``.
    """
    rows: dict[str, _Row] = defaultdict(_Row)
    for path in sorted(root.rglob("*.csv")):
        if path.name == REGION_TABLE:
            continue
        try:
            with path.open(newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                columns = {name.strip().lower(): name for name in reader.fieldnames or ()}
                table = list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            text = f"{path} cannot be read: {error}."
            raise InputRefused("table-damaged", text, "Give a comma-separated table in UTF-8.") from error
        id_column = next((columns[name] for name in ID_COLUMNS if name in columns), None)
        if id_column is None or not any(Path(entry[id_column] or "").stem in stems for entry in table):
            continue  # a table of something else
        box_columns = next((tuple(columns[n] for n in four) for four in BOX_COLUMNS if set(four) <= set(columns)), None)
        group_column = next((columns[n] for n in GROUP_COLUMNS if n in columns and columns[n] != id_column), None)
        used = {id_column, group_column, *(box_columns or ())}
        numeric, textual = _kinds([name for name in columns.values() if name not in used], table)
        for line, entry in enumerate(table, start=2):
            row = rows[Path(entry[id_column] or "").stem]
            if group_column is not None:
                row.group = entry[group_column]
            if box_columns is not None:
                row.boxes = row.boxes or []
                box = _box(path, line, [entry[name] for name in box_columns], size=box_columns[2].lower() == "width")
                row.boxes += [] if box is None else [box]
            for name in numeric:
                row.labels = (row.labels or {}) | {name: int(float(entry[name]))}
            for name in textual:
                row.classes = (row.classes or {}) | {name: entry[name].strip()}
    return dict(rows)


def _kinds(names: Sequence[str], table: Sequence[dict[str, str]]) -> tuple[list[str], list[str]]:
    """Columns that hold 0 and 1 throughout, and columns of few different words."""
    numeric, textual = [], []
    for name in names:
        values = [(entry[name] or "").strip() for entry in table]
        if all(value in ("0", "1", "0.0", "1.0") for value in values):
            numeric.append(name)
        elif all(values) and 2 <= len(set(values)) <= min(50, max(2, len(values) // 2)) and not _is_number(values[0]):
            textual.append(name)
    return numeric, textual


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _box(path: Path, line: int, cells: Sequence[str], *, size: bool) -> Box | None:
    """A box of a table's row, or None in a row without one."""
    if not any((cell or "").strip() for cell in cells):
        return None
    try:
        a, b, c, d = (float(cell) for cell in cells)
    except ValueError as error:
        text = f"{path}, line {line}: {cells} is no box."
        raise InputRefused("table-box", text, "Give four numbers in pixels, or leave all four empty.") from error
    box = (a, b, a + c, b + d) if size else (a, b, c, d)
    if not (box[0] < box[2] and box[1] < box[3]):
        raise InputRefused("table-box", f"{path}, line {line}: the box {box} is empty.", "Correct it, or leave it out.")
    return box


def _regions(root: Path, seen: Sequence[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and values of the regions: those of `REGION_TABLE`, or else those that the masks hold."""
    path = root / REGION_TABLE
    if not path.is_file():
        return (("lesion",) if len(seen) == 1 else tuple(f"region_{value}" for value in seen)), tuple(seen)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            named = {int(entry["value"]): entry["name"].strip() for entry in csv.DictReader(stream)}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        text = f"{path} cannot be read: {error}."
        raise InputRefused("table-damaged", text, "Give the columns value and name.") from error
    unnamed = [value for value in seen if value not in named]
    if unnamed:
        text = f"{path} has no name for the value {unnamed[0]} of the masks."
        raise InputRefused("region-unnamed", text, "Add a row for it.")
    order = sorted(value for value in named if value)
    return tuple(named[value] for value in order), tuple(order)


def _labels(cases: list[ImageCase], rows: dict[str, _Row]) -> tuple[tuple[str, ...], str, list[ImageCase]]:
    """Names of the labels, how they exclude each other, and the cases with them."""
    numeric = list(dict.fromkeys(name for case in cases for name in case.labels or ()))
    if numeric:
        complete = [
            case if case.labels and set(case.labels) == set(numeric) else replace(case, labels=None) for case in cases
        ]
        return tuple(numeric), "sigmoid", complete
    told = {case.id: rows.get(Path(case.id).name, _Row()).classes or {} for case in cases}
    columns = list(dict.fromkeys(name for classes in told.values() for name in classes))
    if not columns:
        return (), "sigmoid", cases
    names = sorted({classes[columns[0]] for classes in told.values() if columns[0] in classes})
    labelled = []
    for case in cases:
        chosen = told[case.id].get(columns[0])
        labels = None if chosen is None else {name: int(name == chosen) for name in names}
        labelled.append(replace(case, labels=labels))
    return tuple(names), "softmax", labelled


def _labelled_by_mask(
    case: ImageCase, mask: np.ndarray | None, regions: Sequence[str], values: Sequence[int]
) -> ImageCase:
    if mask is None:
        return case
    present = set(np.unique(mask).tolist())
    return replace(case, labels={name: int(value in present) for name, value in zip(regions, values, strict=True)})


def _folds(
    cases: tuple[ImageCase, ...], root: Path, folds: int, seed: int, notes: list[str]
) -> tuple[tuple[ImageCase, ...], int]:
    """The cases with their folds, and the number of folds."""
    splits = {case.id: _split(case.image.relative_to(root)) for case in cases}
    held = {name for name, split in splits.items() if split and not split.startswith("train")}
    if not held or len(held) == len(cases):
        return deal_folds(cases, folds, seed), folds
    notes.append("The folders say what is for training: fold 0 holds the rest, to validate and measure on.")
    return tuple(replace(case, fold=0 if case.id in held else 1) for case in cases), 2


def _split(path: Path) -> str:
    for part in path.parts[:-1]:
        match = SPLIT.search(part.replace("-", "_"))
        if match:
            return match.group(2).lower()
    return ""
