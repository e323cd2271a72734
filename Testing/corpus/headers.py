"""Headers and geometry: impossible sizes, contradicting transforms, grids that differ or do not meet."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk

from MTMed3DCore.volume import read_volume, to_sitk
from Testing.corpus.case import SEQUENCES, Given, Subject, four_files
from Testing.corpus.plain import AFFINE, SHAPE, save, sequence

CASES = Subject("headers and geometry")
# Where fields of a NIfTI-1 header stand.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, QFORM_CODE, SFORM_CODE, QUATERNION, SROW_X = 40, 70, 76, 108, 252, 254, 256, 280


def patch(file: Path, *changes: tuple[int, object, str]) -> None:
    """Overwrite fields of a NIfTI header: where, the value, and its NumPy type."""
    raw = bytearray(gzip.decompress(file.read_bytes()))
    for offset, value, kind in changes:
        field = np.asarray(value, dtype=kind).tobytes()
        raw[offset : offset + len(field)] = field
    file.write_bytes(gzip.compress(bytes(raw)))


def _every(folder: Path, change: Callable[[Path], None]) -> None:
    for name in SEQUENCES:
        change(folder / f"{name}.nii.gz")


def _rotated(angle: float, spacing: tuple[float, float, float] = (4, 4, 4)) -> np.ndarray:
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    scaled = np.diag([*spacing, 1.0])
    scaled[:3, 3] = AFFINE[:3, 3]
    return turn @ scaled


@CASES.refuses("too-large", "flair")
def short_file_that_claims_a_trillion_voxels(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (DIM, [3, 10000, 10000, 10000], "<i2"))


@CASES.refuses("too-large", "flair")
def nifti2_whose_voxels_overflow_64_bits(folder: Path) -> Given:
    header = nibabel.Nifti2Header()
    header.set_data_dtype(np.int16)
    header.set_sform(AFFINE, 1)
    raw = bytearray(header.binaryblock)
    raw[16:80] = np.array([3, 2**32, 2**32, 4, 1, 1, 1, 1], "<i8").tobytes()
    (folder / "flair.nii").write_bytes(bytes(raw) + bytes(100))
    return four_files(folder, flair=folder / "flair.nii")


@CASES.refuses("too-large", "flair")
def nrrd_that_claims_a_trillion_voxels(folder: Path) -> Given:
    sitk.WriteImage(to_sitk(read_volume(folder / "flair.nii.gz")), str(folder / "flair.nrrd"))
    content = (folder / "flair.nrrd").read_bytes().replace(b"sizes: 40 44 36", b"sizes: 10000 10000 10000")
    (folder / "flair.nrrd").write_bytes(content[:1000])
    return four_files(folder, flair=folder / "flair.nrrd")


@CASES.refuses("not-3d", "-44")
def negative_size(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (DIM, [3, 40, -44, 36], "<i2"))


@CASES.refuses("file-damaged", "flair")
def unknown_type_of_number(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (DATATYPE, [77, 3], "<i2"))


@CASES.refuses("file-damaged", "flair")
def data_that_start_nowhere(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (VOX_OFFSET, np.nan, "<f4"))


@CASES.refuses("file-damaged", "flair")
def data_that_start_beyond_the_end(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (VOX_OFFSET, 1e8, "<f4"))


@CASES.refuses("geometry-contradiction", "flair")
def spacing_of_zero(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (PIXDIM + 4, [4, 4, 0], "<f4"))


@CASES.analyses(same=True)
def spacing_of_zero_beside_a_whole_sform(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (PIXDIM + 4, [4, 4, 0], "<f4"), (QFORM_CODE, 0, "<i2"))


@CASES.refuses("geometry", "flair")
def transform_of_not_a_number(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (SROW_X, [np.nan, 0, 0, 0], "<f4"))


@CASES.refuses("geometry", "flair")
def quaternion_that_is_no_rotation(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (QUATERNION, [5, 5, 5], "<f4"))


@CASES.refuses("geometry", "flair")
def quaternion_whose_square_is_beyond_a_number(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (QUATERNION, np.finfo(np.float32).max / 2, "<f4"))


@CASES.refuses("geometry", "flair")
def place_that_is_no_number_beside_a_whole_sform(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (QUATERNION + 20, np.nan, "<f4"))


@CASES.refuses("geometry", "flair")
def spacing_next_to_zero(folder: Path) -> None:
    """So small that its product with the others is no number that can be divided by."""
    patch(folder / "flair.nii.gz", (PIXDIM + 12, 6e-39, "<f4"))


@CASES.refuses("geometry", "flair")
def spacing_that_is_not_finite(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (PIXDIM + 4, [np.inf, 4, 4], "<f4"), (SFORM_CODE, 0, "<i2"))


@CASES.refuses("geometry", "flair")
def flat_transform(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (SROW_X, [0, 0, 0, 0], "<f4"), (QFORM_CODE, 0, "<i2"))


@CASES.refuses("geometry-absent", "flair")
def neither_sform_nor_qform(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (QFORM_CODE, 0, "<i2"), (SFORM_CODE, 0, "<i2"))


@CASES.refuses("geometry-absent", "flair")
def nrrd_without_directions(folder: Path) -> Given:
    head = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 40 44 36\nendian: little\nencoding: raw\n\n"
    (folder / "flair.nrrd").write_bytes(head + sequence("flair").tobytes(order="F"))
    return four_files(folder, flair=folder / "flair.nrrd")


@CASES.refuses("geometry-absent", "flair")
def metaimage_without_directions(folder: Path) -> Given:
    head = b"NDims = 3\nDimSize = 40 44 36\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (folder / "flair.mha").write_bytes(head + sequence("flair").tobytes(order="F"))
    return four_files(folder, flair=folder / "flair.mha")


@CASES.refuses("geometry-contradiction", "5.0 mm")
def sform_and_qform_5_mm_apart(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (SROW_X + 12, AFFINE[0, 3] + 5, "<f4"))


@CASES.refuses("geometry-contradiction", "flair")
def sform_that_mirrors_the_qform(folder: Path) -> None:
    patch(folder / "flair.nii.gz", (SROW_X, [-4, 0, 0, 78], "<f4"))


@CASES.refuses("geometry-shear", "flair")
def sheared_grid(folder: Path) -> None:
    sheared = AFFINE.copy()
    sheared[0, 1] = 1.0
    image = nibabel.Nifti1Image(sequence("flair"), sheared)
    image.set_qform(None, 0)
    nibabel.save(image, folder / "flair.nii.gz")


@CASES.refuses("no-overlap", "flair")
def sequence_half_a_metre_away(folder: Path) -> None:
    moved = AFFINE.copy()
    moved[2, 3] += 500
    save(folder / "flair.nii.gz", sequence("flair"), moved)


@CASES.refuses("not-3d", "flair")
def single_slice(folder: Path) -> None:
    save(folder / "flair.nii.gz", sequence("flair")[..., 18:19])


@CASES.refuses("not-3d", "flair")
def two_dimensional_image(folder: Path) -> None:
    save(folder / "flair.nii.gz", sequence("flair")[..., 18])


@CASES.refuses("not-3d", "flair")
def four_sequences_in_one_file(folder: Path) -> None:
    save(folder / "flair.nii.gz", np.stack([sequence(name) for name in SEQUENCES], axis=-1))


@CASES.refuses("brain-empty", "T1ce")
def study_of_two_voxels_a_side(folder: Path) -> None:
    for number, name in enumerate(SEQUENCES):
        values = np.arange(8, dtype=np.int16).reshape(2, 2, 2) * (number + 1)
        save(folder / f"{name}.nii.gz", values, np.diag([4.0, 4, 4, 1]))


@CASES.warns("resampled", "flair")
def thick_slices(folder: Path) -> None:
    thick = AFFINE @ np.diag([1, 1, 2, 1.0])
    thick[2, 3] += 2
    values = sequence("flair")
    save(folder / "flair.nii.gz", ((values[..., ::2] + values[..., 1::2]) // 2).astype(np.int16), thick)


@CASES.warns("resampled", "flair")
def sequence_turned_against_the_others(folder: Path) -> None:
    save(folder / "flair.nii.gz", sequence("flair"), _rotated(0.1))


@CASES.warns("resampled", "t2", same=True)
def one_sequence_stored_left_to_right_the_other_way(folder: Path) -> None:
    """The same image in the world, so the same result: only its storage is mirrored."""
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    save(folder / "t2.nii.gz", np.ascontiguousarray(sequence("t2")[::-1]), AFFINE @ flip)


@CASES.analyses(same=True)
def left_handed_study(folder: Path) -> None:
    def flip(file: Path) -> None:
        turn = np.diag([-1.0, 1, 1, 1])
        turn[0, 3] = SHAPE[0] - 1
        save(file, np.ascontiguousarray(sequence(file.name.split(".")[0])[::-1]), AFFINE @ turn)

    _every(folder, flip)


@CASES.analyses()
def oblique_study(folder: Path) -> None:
    _every(folder, lambda file: save(file, sequence(file.name.split(".")[0]), _rotated(0.4)) and None)


@CASES.analyses(same=True)
def fourth_dimension_of_one(folder: Path) -> None:
    _every(folder, lambda file: save(file, sequence(file.name.split(".")[0])[..., np.newaxis]) and None)


@CASES.analyses(same=True)
def sform_alone(folder: Path) -> None:
    _every(folder, lambda file: patch(file, (QFORM_CODE, 0, "<i2")))


@CASES.analyses(same=True)
def qform_alone(folder: Path) -> None:
    _every(folder, lambda file: patch(file, (SFORM_CODE, 0, "<i2"), (SROW_X, [9, 9, 9, 9], "<f4")))
