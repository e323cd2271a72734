"""Sites made out of one data list, to try a federation before there is one."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from MTMed3DCore.datalist import Case, DataList
from MTMed3DCore.errors import InputRefused, WrongUse

COLUMNS = ("grade", "fold", "source", "convention", "patient")
"""What a data list itself says of each case, and can be split by."""


def split_at_random(listed: DataList, sites: int, seed: int) -> dict[str, tuple[Case, ...]]:
    """Sites of about equal size; all studies of a patient go to one.

    Raises:
        WrongUse: ``federation-sites``, fewer patients than sites.
    """
    patients = sorted({case.patient for case in listed.cases})
    if not 1 <= sites <= len(patients):
        text = f"{len(patients)} patients cannot be spread over {sites} sites."
        raise WrongUse("federation-sites", text, f"Give --sites 1 to {len(patients)}.")
    order = np.random.default_rng(seed).permutation(len(patients))
    place = {patients[number]: index % sites for index, number in enumerate(order)}
    width = len(str(sites))
    return {
        f"site{site + 1:0{width}d}": tuple(case for case in listed.cases if place[case.patient] == site)
        for site in range(sites)
    }


def split_by(listed: DataList, column: str, table: Path | None = None) -> dict[str, tuple[Case, ...]]:
    """A site for each value of a column.

    Args:
        listed: the cases.
        column: of `table`, or without one of `COLUMNS`.
        table: CSV with a column ``id`` that names the cases.

    Raises:
        WrongUse: ``federation-column``.
        InputRefused: ``federation-table``, a table that cannot be read or lacks a case.
    """
    if table is None and column not in COLUMNS:
        text = f"A data list has no column {column!r}."
        raise WrongUse("federation-column", text, f"Choose one of {', '.join(COLUMNS)}, or give --table with it.")
    values = _read_table(table, column) if table is not None else {c.id: _value(c, column) for c in listed.cases}
    missing = [case.id for case in listed.cases if not values.get(case.id)]
    if missing:
        where = table if table is not None else "The list"
        text = f"{where} has no {column} for {missing[0]} and {len(missing) - 1} other cases."
        raise InputRefused("federation-table", text, "Complete it, or split by another column.")
    names = sorted({values[case.id] for case in listed.cases})
    return {name: tuple(case for case in listed.cases if values[case.id] == name) for name in names}


def _value(case: Case, column: str) -> str:
    value = getattr(case, column)
    return "" if value is None else str(value)


def _read_table(table: Path, column: str) -> Mapping[str, str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputRefused("federation-table", f"{table} cannot be read: {error}.", "Give a CSV file.") from error
    if not rows or not {"id", column} <= set(rows[0]):
        text = f"{table} has no columns id and {column}."
        raise InputRefused("federation-table", text, "Its first row must name them.")
    return {row["id"].strip(): (row[column] or "").strip() for row in rows}
