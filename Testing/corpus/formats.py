"""Files and formats: cut, broken, renamed, absent, or with names that programs stumble over."""

from __future__ import annotations

import gzip
import os
import re
import struct
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from MTMed3DCore.volume import read_volume, to_sitk
from Testing.corpus.case import SEQUENCES, Given, Subject, four_files

CASES = Subject("files and formats")


def _cut(file: Path, share: float) -> None:
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])


def _unpacked(file: Path) -> Path:
    plain = file.with_suffix("")
    plain.write_bytes(gzip.decompress(file.read_bytes()))
    return plain


def _itk(folder: Path, suffix: str, *, compressed: bool = False) -> Path:
    """The FLAIR in another format."""
    file = folder / f"flair{suffix}"
    sitk.WriteImage(to_sitk(read_volume(folder / "flair.nii.gz")), str(file), compressed)
    return file


def _edited(file: Path, old: bytes, new: bytes) -> Path:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    return file


@CASES.refuses("file-damaged", "flair")
def gzip_cut_to_half(folder: Path) -> None:
    _cut(folder / "flair.nii.gz", 0.5)


@CASES.refuses("file-damaged", "flair")
def gzip_without_its_checksum(folder: Path) -> None:
    file = folder / "flair.nii.gz"
    file.write_bytes(file.read_bytes()[:-8])


@CASES.refuses("file-damaged", "flair")
def gzip_with_a_changed_byte(folder: Path) -> None:
    file = folder / "flair.nii.gz"
    content = bytearray(file.read_bytes())
    content[-6] ^= 0xFF  # in the checksum: the stream itself still unpacks
    file.write_bytes(bytes(content))


@CASES.refuses("file-damaged", "flair")
def gzip_followed_by_rubbish(folder: Path) -> None:
    file = folder / "flair.nii.gz"
    file.write_bytes(file.read_bytes() + b"not a gzip member")


@CASES.refuses("file-damaged", "flair")
def nifti_that_ends_early(folder: Path) -> Given:
    file = _unpacked(folder / "flair.nii.gz")
    _cut(file, 0.5)
    return four_files(folder, flair=file)


@CASES.refuses("file-damaged", "flair")
def header_only(folder: Path) -> Given:
    file = _unpacked(folder / "flair.nii.gz")
    file.write_bytes(file.read_bytes()[:352])
    return four_files(folder, flair=file)


@CASES.refuses("file-damaged", "flair")
def nifti_whose_voxels_begin_beyond_any_file(folder: Path) -> Given:
    file = _unpacked(folder / "flair.nii.gz")
    content = bytearray(file.read_bytes())
    content[108:112] = struct.pack("<f", 1e23)
    file.write_bytes(content)
    return four_files(folder, flair=file)


@CASES.refuses("file-damaged", "flair")
def empty_file(folder: Path) -> None:
    (folder / "flair.nii.gz").write_bytes(b"")


@CASES.refuses("file-damaged", "flair")
def text_named_as_an_image(folder: Path) -> None:
    (folder / "flair.nii.gz").write_text("<html>404 not found</html>")


@CASES.refuses("file-damaged", "flair")
def unpacked_image_named_as_packed(folder: Path) -> None:
    (folder / "flair.nii.gz").write_bytes(gzip.decompress((folder / "flair.nii.gz").read_bytes()))


@CASES.refuses("file-damaged", "flair")
def packed_image_named_as_unpacked(folder: Path) -> Given:
    return four_files(folder, flair=(folder / "flair.nii.gz").rename(folder / "flair.nii"))


@CASES.refuses("file-kind", "flair")
def picture_instead_of_an_image(folder: Path) -> Given:
    return four_files(folder, flair=(folder / "flair.nii.gz").rename(folder / "flair.jpg"))


def _cut_to_half(folder: Path, suffix: str, *, compressed: bool = False) -> Given:
    file = _itk(folder, suffix, compressed=compressed)
    _cut(file, 0.5)
    return four_files(folder, flair=file)


@CASES.refuses("file-damaged", "flair")
def nrrd_cut_to_half(folder: Path) -> Given:
    return _cut_to_half(folder, ".nrrd")


@CASES.refuses("file-damaged", "flair")
def nrrd_whose_sizes_are_no_whole_numbers(folder: Path) -> Given:
    file = _itk(folder, ".nrrd")
    file.write_bytes(re.sub(rb"\nsizes: (\d+) (\d+) ", rb"\nsizes: \1 \2e ", file.read_bytes()))
    return four_files(folder, flair=file)


@CASES.refuses("file-damaged", "flair")
def packed_nrrd_cut_to_half(folder: Path) -> Given:
    return _cut_to_half(folder, ".nrrd", compressed=True)


@CASES.refuses("file-damaged", "flair")
def metaimage_cut_to_half(folder: Path) -> Given:
    return _cut_to_half(folder, ".mha")


@CASES.refuses("file-damaged", "flair.raw")
def metaimage_without_its_data_file(folder: Path) -> Given:
    file = _itk(folder, ".mhd")
    (folder / "flair.raw").unlink()
    return four_files(folder, flair=file)


@CASES.refuses("file-damaged", "flair")
def nrrd_whose_sizes_are_words(folder: Path) -> Given:
    return four_files(folder, flair=_edited(_itk(folder, ".nrrd"), b"sizes: 40 44 36", b"sizes: 40 44 xx"))


@CASES.refuses("file-damaged", "NDims")
def metaimage_of_more_dimensions_than_a_number_holds(folder: Path) -> Given:
    """Ends the whole process where ITK is given it."""
    return four_files(folder, flair=_edited(_itk(folder, ".mha"), b"NDims = 3", b"NDims = 99999999999999999999"))


@CASES.refuses("file-damaged", "flair")
def metaimage_whose_sizes_are_words(folder: Path) -> Given:
    return four_files(folder, flair=_edited(_itk(folder, ".mha"), b"DimSize = 40 44 36", b"DimSize = 40 44 xx"))


@CASES.refuses("file-missing", "does not exist")
def path_to_nothing(folder: Path) -> Given:
    return four_files(folder, flair=folder / "nothing.nii.gz")


@CASES.refuses("file-missing", "is a folder")
def folder_named_as_an_image(folder: Path) -> None:
    (folder / "flair.nii.gz").unlink()
    (folder / "flair.nii.gz").mkdir()


@CASES.refuses("file-missing", "flair")
def link_to_nothing(folder: Path) -> None:
    (folder / "flair.nii.gz").unlink()
    (folder / "flair.nii.gz").symlink_to(folder / "nothing.nii.gz")


@CASES.refuses("file-missing", "flair")
def link_to_itself(folder: Path) -> None:
    (folder / "flair.nii.gz").unlink()
    (folder / "flair.nii.gz").symlink_to(folder / "flair.nii.gz")


@CASES.refuses("file-missing", "t1ce")
def link_to_itself_that_names_the_study(folder: Path) -> None:
    (folder / "t1ce.nii.gz").unlink()
    (folder / "t1ce.nii.gz").symlink_to(folder / "t1ce.nii.gz")


@CASES.refuses("file-missing", "is no file")
def named_pipe(folder: Path) -> None:
    """Reading it would wait for ever."""
    (folder / "flair.nii.gz").unlink()
    os.mkfifo(folder / "flair.nii.gz")


@CASES.refuses("file-missing", "flair")
def path_with_a_null_character(folder: Path) -> Given:
    return four_files(folder, flair=folder / "flair\0.nii.gz")


@CASES.refuses("file-access", "xxxx")
def path_longer_than_a_path_may_be(folder: Path) -> Given:
    return four_files(folder, flair=folder / ("x" * 5000 + ".nii.gz"))


@CASES.analyses(same=True)
def names_with_spaces_accents_and_a_line_break(folder: Path) -> Given:
    place = folder / "Müller  Ætherström 患者\n(2)"
    place.mkdir()
    odd = {"t1": "t1 α.nii.gz", "t1ce": "t1ce\n.nii.gz", "t2": "t2 'q\".nii.gz", "flair": "-flair%20;$HOME.nii.gz"}
    return Given({name: (folder / f"{name}.nii.gz").rename(place / odd[name]) for name in SEQUENCES})


@CASES.analyses(same=True)
def names_that_are_no_unicode(folder: Path) -> Given:
    name = os.fsdecode(b"patient_\xe9\xff_flair.nii.gz")
    return four_files(folder, flair=(folder / "flair.nii.gz").rename(folder / name))


@CASES.analyses(same=True)
def big_endian_files(folder: Path) -> None:
    for name in SEQUENCES:
        image = nibabel.load(folder / f"{name}.nii.gz")
        header = image.header.as_byteswapped(">")
        swapped = nibabel.Nifti1Image(np.asarray(image.dataobj).astype(">i2"), None, header)
        nibabel.save(swapped, folder / f"{name}.nii.gz")


@CASES.analyses(same=True)
def each_sequence_in_another_format(folder: Path) -> Given:
    files = {"t1": folder / "t1.nrrd", "t2": folder / "t2.mha", "flair": folder / "flair.mhd"}
    for name, file in files.items():
        sitk.WriteImage(to_sitk(read_volume(folder / f"{name}.nii.gz")), str(file), name == "t2")
    return four_files(folder, **files)
