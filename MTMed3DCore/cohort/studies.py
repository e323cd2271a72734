"""Which studies a command names: folders, a CSV file, a data list, or a folder of studies."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MTMed3DCore.errors import InputRefused

CHANNELS = ("t1", "t1ce", "t2", "flair")
"""The sequences; `MTMed3DCore.sequences.SEQUENCES`, named here so that the help loads no numpy."""
_AS_TEXT = "Save it as CSV in UTF-8."


@dataclass(frozen=True)
class Request:
    """One study to analyse.

    Args:
        case: its folder, or None.
        files: path of each sequence where there is no folder.
        id: its name where the user gave one.
        volumes: index of the last axis, for sequences that share a four-dimensional file.
    """

    case: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)
    id: str = ""
    volumes: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the study is called before it is read: for messages and for its subfolder."""
        if self.id:
            return self.id
        source = self.case or self.files["t1ce"]
        try:
            name = source.resolve().name
        except (OSError, RuntimeError, ValueError):  # links in a circle, a null character: refused when it is read
            name = source.name
        return name.split(".")[0] if source.is_file() else name


def read_list(path: Path) -> list[Request]:
    """The studies of a list: a CSV file, or a data list (``.json``).

    Raises:
        InputRefused: a CSV file without rows, with unknown columns, an empty cell, or an id that is no folder name; a
            damaged data list. A file that is missing is a matter of its study, not of the list.
    """
    return _read_datalist(path) if path.suffix.lower() == ".json" else _read_table(path)


def is_list(path: Path) -> bool:
    """Whether a path names a list of studies rather than a study."""
    return path.suffix.lower() in (".csv", ".json")


def studies_below(folder: Path, without: Path) -> list[Request]:
    """The studies of a folder of studies: every subfolder, where at least one holds the images of a whole study.

    Args:
        folder: with no image file of its own.
        without: the output folder, which may lie among the studies.

    Returns:
        Nothing where the folder holds an image or is one study itself, or where no subfolder holds a whole study.
    """
    from MTMed3DCore.sequences import SUFFIXES, find_sequences

    def whole(place: Path) -> bool:
        try:
            return bool(find_sequences(place))
        except InputRefused:
            return False

    entries = sorted(folder.iterdir())
    if any(each.name.lower().endswith(SUFFIXES) for each in entries) or whole(folder):
        return []
    places = [each for each in entries if each.is_dir() and not each.name.startswith(".")]
    places = [each for each in places if each.resolve() != without.resolve()]
    return [Request(place) for place in places] if any(map(whole, places)) else []


def _read_datalist(path: Path) -> list[Request]:
    from MTMed3DCore.datalist import DataList

    cases = DataList.read(path, complete=False).cases
    if not cases:
        raise InputRefused("list-empty", f"{path} names no study.", "Make it again with `mtmed3d datalist`.")
    return [
        Request(
            files={name: image.path for name, image in case.images.items()},
            id=case.id,
            volumes={name: image.index for name, image in case.images.items() if image.index is not None},
        )
        for case in cases
    ]


def _read_table(path: Path) -> list[Request]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        try:
            rows, headings = list(reader), reader.fieldnames or ()
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputRefused("list-unreadable", f"{path} is no readable CSV file: {error}.", _AS_TEXT) from error
    columns = {str(column).strip().lower(): column for column in headings}
    wanted: Sequence[str] = ("case",) if "case" in columns else CHANNELS
    missing = [column for column in wanted if column not in columns]
    if missing:
        text = f"{path} has the columns {', '.join(columns) or 'none'}; missing: {', '.join(missing)}."
        raise InputRefused("list-columns", text, "Give a column `case`, or the columns t1, t1ce, t2 and flair.")
    if not rows:
        raise InputRefused("list-empty", f"{path} names no study.", "Give one study a row below the headings.")
    return [_request(path, number, row, columns, wanted) for number, row in enumerate(rows, start=2)]


def _request(path: Path, number: int, row: dict[Any, Any], columns: dict[str, str], wanted: Sequence[str]) -> Request:
    cells = {name: (row.get(columns[name]) or "").strip() for name in (*wanted, *(["id"] if "id" in columns else []))}
    empty = [name for name, cell in cells.items() if not cell]
    if empty:
        raise InputRefused(
            "list-cell",
            f"Line {number} of {path} has nothing under {', '.join(empty)}.",
            "Fill it, or leave the line out.",
        )
    study_id = cells.pop("id", "")
    if study_id in {".", ".."} or set(study_id) & set('/\\:*?"<>|'):
        text = f"Line {number} of {path} has the id {study_id!r}, which cannot be the name of a folder."
        raise InputRefused("list-id", text, "Use letters, digits, dots, dashes and underscores.")
    paths = {name: path.parent / cell for name, cell in cells.items()}
    return Request(paths["case"], id=study_id) if "case" in paths else Request(files=paths, id=study_id)
