"""Sequences that are missing, doubled, swapped, or not what they are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from Testing.corpus.case import Given, Subject, four_files
from Testing.corpus.plain import AFFINE, SHAPE, save, sequence

CASES = Subject("sequences")


def _swapped(folder: Path, first: str, second: str) -> Given:
    one, two = (folder / f"{name}.nii.gz" for name in (first, second))
    return four_files(folder, **{first: two, second: one})


@CASES.refuses("sequence-missing", "flair")
def folder_without_flair(folder: Path) -> Given:
    (folder / "flair.nii.gz").unlink()
    return Given(place=folder)


@CASES.refuses("sequence-missing", "no image at all", plain=False)
def empty_folder(folder: Path) -> Given:
    return Given(place=folder)


@CASES.refuses("case-missing", "nowhere", plain=False)
def folder_that_is_not_there(folder: Path) -> Given:
    return Given(place=folder / "nowhere")


@CASES.refuses("folder-missing", "is a file")
def file_given_as_a_folder(folder: Path) -> Given:
    return Given(place=folder / "t1ce.nii.gz")


@CASES.refuses("sequence-ambiguous", "scan_T2.nii.gz")
def two_t2_in_a_folder(folder: Path) -> Given:
    shutil.copy(folder / "t2.nii.gz", folder / "scan_T2.nii.gz")
    return Given(place=folder)


@CASES.refuses("sequence-missing", "no image at all", plain=False)
def folder_of_holiday_pictures(folder: Path) -> Given:
    (folder / "IMG_0001.JPG").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    return Given(place=folder)


@CASES.refuses("sequence-twice", "t2")
def one_file_twice(folder: Path) -> Given:
    return four_files(folder, flair=folder / "t2.nii.gz")


@CASES.refuses("sequence-twice", "t2")
def one_file_and_a_link_to_it(folder: Path) -> Given:
    (folder / "copy.nii.gz").symlink_to(folder / "t2.nii.gz")
    return four_files(folder, flair=folder / "copy.nii.gz")


@CASES.refuses("sequence-twice", "t2")
def a_copy_under_another_name(folder: Path) -> None:
    shutil.copy(folder / "t2.nii.gz", folder / "flair.nii.gz")


@CASES.warns("sequence-alike", "T2 and FLAIR")
def a_copy_with_its_voxels_stored_mirrored(folder: Path) -> None:
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    save(folder / "flair.nii.gz", np.ascontiguousarray(sequence("t2")[::-1]), AFFINE @ flip)


@CASES.warns("sequence-alike", "T2 and FLAIR")
def a_copy_in_other_units(folder: Path) -> None:
    save(folder / "flair.nii.gz", sequence("t2").astype(np.float32) * 0.37 + 5)


@CASES.warns("contrast-kinship", "check which image is which sequence")
def t1_and_flair_swapped(folder: Path) -> Given:
    return _swapped(folder, "t1", "flair")


@CASES.warns("contrast-fluid", "swapped")
def t2_and_flair_swapped(folder: Path) -> Given:
    return _swapped(folder, "t2", "flair")


@CASES.warns("contrast-enhancement", "swapped")
def t1_and_t1ce_swapped(folder: Path) -> Given:
    return _swapped(folder, "t1", "t1ce")


@CASES.warns("contrast-kinship", "check which image is which sequence")
def t1ce_and_t2_swapped(folder: Path) -> Given:
    return _swapped(folder, "t1ce", "t2")
