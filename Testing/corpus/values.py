"""Voxel values: not finite, blank, coloured, scaled beyond what a number holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from Testing.corpus.case import SEQUENCES, Subject
from Testing.corpus.headers import patch
from Testing.corpus.plain import SHAPE, save, sequence

CASES = Subject("values")
SLOPE, INTERCEPT = 112, 116


def _spoilt(folder: Path, value: float) -> None:
    values = sequence("flair").astype(np.float32)
    values[3, 4, 5] = value
    save(folder / "flair.nii.gz", values)


@CASES.refuses("not-finite", "1 voxels")
def one_voxel_that_is_no_number(folder: Path) -> None:
    _spoilt(folder, np.nan)


@CASES.refuses("not-finite", "1 voxels")
def one_infinite_voxel(folder: Path) -> None:
    _spoilt(folder, -np.inf)


@CASES.refuses("not-finite", "flair")
def double_beyond_single_precision(folder: Path) -> None:
    values = sequence("flair").astype(np.float64)
    values[3, 4, 5] = 1e300
    save(folder / "flair.nii.gz", values)


@CASES.refuses("constant", "flair")
def all_zero(folder: Path) -> None:
    save(folder / "flair.nii.gz", np.zeros(SHAPE, np.int16))


@CASES.refuses("constant", "flair")
def all_seven(folder: Path) -> None:
    save(folder / "flair.nii.gz", np.full(SHAPE, 7, np.float32))


@CASES.refuses("not-finite", "flair")
def slope_that_overflows(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (SLOPE, [3e38, 0], "<f4"))


@CASES.refuses("file-damaged", "flair")
def slope_with_an_intercept_of_not_a_number(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (SLOPE, [2, np.nan], "<f4"))


@CASES.refuses("not-scalar", "colour")
def colours(folder: Path) -> None:
    save(folder / "flair.nii.gz", np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


@CASES.refuses("not-scalar", "complex")
def complex_numbers(folder: Path) -> None:
    save(folder / "flair.nii.gz", sequence("flair").astype(np.complex64))


@CASES.refuses("brain-empty", "ml")
def one_bright_voxel_in_nothing(folder: Path) -> None:
    for number, name in enumerate(SEQUENCES):
        values = np.zeros(SHAPE, np.int16)
        values[20, 20, 18] = 100 + number
        save(folder / f"{name}.nii.gz", values)


def _stored_as(folder: Path, kind: Any) -> None:
    for name in SEQUENCES:
        save(folder / f"{name}.nii.gz", sequence(name).clip(0).astype(kind))


@CASES.analyses()
def unsigned_16_bits(folder: Path) -> None:
    _stored_as(folder, np.uint16)


@CASES.analyses(same=True)
def double_precision(folder: Path) -> None:
    for name in SEQUENCES:
        save(folder / f"{name}.nii.gz", sequence(name).astype(np.float64))


@CASES.analyses(same=True)
def slope_of_zero_means_no_scaling(folder: Path) -> None:
    for name in SEQUENCES:
        patch(folder / f"{name}.nii.gz", (SLOPE, [0, 0], "<f4"))
