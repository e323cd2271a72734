"""Grades from where they are written down: folder names, BraTS's mapping tables, and the authors' annotation file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from MTMed3DCore.datalist.case import GRADES
from MTMed3DCore.datalist.walking import files_below
from MTMed3DCore.errors import InputRefused

AUTHORS_GRADES = ("LGG", "HGG")
"""Meaning of ``cls_label`` in the published ``data_annotation.json``."""


def grade_of_folder(place: Path, root: Path) -> str | None:
    """The grade that a folder between `root` and the case is named after, or the root."""
    # As the user names them: what a link leads to may lie anywhere.
    for part in reversed((Path(os.path.abspath(root)).name, *place.relative_to(root).parts)):
        if part.upper() in GRADES:
            return part.upper()
    return None


def grades_of_tables(root: Path) -> dict[str, str]:
    """Grades by case id out of every table (``*.csv``) below a folder with a column ``Grade``.

    BraTS names the columns with ids ``..._subject_ID`` or ``BraTS..ID``; every other column is left aside. An id with
    two different grades gets none.
    """
    found: dict[str, set[str]] = {}
    for table in (file for file in files_below(root) if file.suffix == ".csv"):
        for case_id, grade in grades_of_table(table).items():
            found.setdefault(case_id, set()).add(grade)
    return {case_id: grades.pop() for case_id, grades in found.items() if len(grades) == 1}


def grades_of_table(table: Path) -> dict[str, str]:
    """Grades by id of one table; empty where it has no column of grades."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}
    grades: dict[str, str] = {}
    for row in rows:
        named = {str(column).strip().lower(): str(value or "").strip() for column, value in row.items()}
        grade = named.get("grade", "").upper()
        if grade not in GRADES:
            continue
        for column, value in named.items():
            if column.endswith("id") and value and value.upper() not in ("NA", "NAN"):
                grades[value] = grade
    return grades


def grades_of_annotation(file: Path) -> dict[str, str]:
    """Grades by case id out of the published ``data_annotation.json``.

    Its boxes are left aside: their frame and their upper bound are documented nowhere, and boxes come from the labels.

    Raises:
        InputRefused: ``annotation-damaged``.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        return {
            _case_of(str(entry["image"])): AUTHORS_GRADES[_first(entry["cls_label"])] for entry in document["training"]
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        text = f"{file} is not the published annotation file: {error!r}."
        raise InputRefused("annotation-damaged", text, "Give the authors' data_annotation.json.") from error


def _first(value: Any) -> int:
    number = value[0] if isinstance(value, list) else value
    if number not in (0, 1):
        raise ValueError(f"cls_label is {value!r}")
    return int(number)


def _case_of(name: str) -> str:
    """``HGG/Brats18_X_1/Brats18_X_1.nii.gz`` and ``Brats18_X_1_flair.nii.gz`` to ``Brats18_X_1``."""
    case = Path(name).name.removesuffix(".gz").removesuffix(".nii")
    for ending in ("_t1", "_t1ce", "_t2", "_flair", "_seg", "_image", "_img", "_label"):
        case = case.removesuffix(ending)
    return case


def known_grade(case_id: str, *sources: tuple[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """The grade of the first source that names the case (letters of any size), and that source."""
    for name, grades in sources:
        folded = {key.casefold(): grade for key, grade in grades.items()}
        grade = folded.get(case_id.casefold())
        if grade is not None:
            return grade, name
    return None
