"""Reading volumes: right values and places from every format, and a named refusal for everything else."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from MTMed3DCore import volume as volume_module
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import Grid
from MTMed3DCore.volume import Volume, from_sitk, read_volume, resample, to_sitk
from Testing.awkward_grids import GRIDS, SHAPE

RNG = np.random.default_rng(11)
ARRAY = RNG.integers(1, 4000, SHAPE).astype(np.int16)


def refusal(path: Path) -> str:
    """The code of the refusal, whose text must name the file."""
    with pytest.raises(InputRefused) as caught:
        read_volume(path)
    assert path.name in caught.value.text
    assert caught.value.remedy
    return caught.value.code


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_format_gives_the_same_volume_on_every_grid(tmp_path, grid, suffix):
    file = tmp_path / f"image{suffix}"
    written = Volume(ARRAY, grid)
    if suffix.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(ARRAY, grid.affine), file)
    else:
        sitk.WriteImage(to_sitk(written), str(file), useCompression=suffix == ".nrrd")
    read = read_volume(file)
    assert read.array.dtype == np.float32
    assert np.array_equal(read.array, ARRAY)
    assert np.allclose(read.grid.affine, grid.affine, atol=1e-4)


def test_simpleitk_reads_our_nifti_grid_at_the_same_place(tmp_path, grid):
    nibabel.save(nibabel.Nifti1Image(ARRAY, grid.affine), tmp_path / "image.nii.gz")
    theirs = from_sitk(sitk.ReadImage(str(tmp_path / "image.nii.gz")))
    assert np.allclose(theirs.grid.affine, read_volume(tmp_path / "image.nii.gz").grid.affine, atol=1e-4)


def test_integers_with_a_slope_are_scaled(tmp_path):
    raw = bytearray(nibabel.Nifti1Image(ARRAY, GRIDS["axial"]).to_bytes())
    raw[112:120] = np.array([0.25, 10], np.float32).tobytes()  # scl_slope and scl_inter
    (tmp_path / "scaled.nii").write_bytes(bytes(raw))
    assert np.allclose(read_volume(tmp_path / "scaled.nii").array, ARRAY * 0.25 + 10)


def test_a_fourth_dimension_of_one_is_dropped(tmp_path):
    nibabel.save(nibabel.Nifti1Image(ARRAY[..., None], GRIDS["axial"]), tmp_path / "one.nii.gz")
    assert np.array_equal(read_volume(tmp_path / "one.nii.gz").array, ARRAY)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    file = tmp_path / f"cut{suffix}"
    if suffix.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(ARRAY, GRIDS["axial"]), file)
    else:
        sitk.WriteImage(to_sitk(Volume(ARRAY, Grid(SHAPE, GRIDS["axial"]))), str(file))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert refusal(file) == "file-damaged"


def test_a_flipped_byte_in_a_compressed_file_is_refused(tmp_path):
    file = tmp_path / "flipped.nii.gz"
    raw = nibabel.Nifti1Image(ARRAY, GRIDS["axial"]).to_bytes()
    packed = bytearray(gzip.compress(raw, compresslevel=0))
    packed[-5000] ^= 0xFF
    file.write_bytes(bytes(packed))
    assert refusal(file) == "file-damaged"


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x1f\x8b rubbish"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_rubbish_is_refused(tmp_path, suffix, content):
    file = tmp_path / f"rubbish{suffix}"
    file.write_bytes(content)
    assert refusal(file) == "file-damaged"


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.ones((*SHAPE, 3), np.float32), "not-3d"),
        (np.ones(SHAPE[:2], np.float32), "not-3d"),
        (np.full(SHAPE, 7, np.float32), "constant"),
        (np.where(ARRAY > 2000, np.nan, ARRAY).astype(np.float32), "not-finite"),
        (np.where(ARRAY > 2000, np.inf, ARRAY).astype(np.float32), "not-finite"),
        (ARRAY.astype(np.complex64), "not-scalar"),
    ],
)
def test_what_is_no_grey_scale_volume_is_refused(tmp_path, array, code):
    file = tmp_path / "odd.nii.gz"
    nibabel.save(nibabel.Nifti1Image(array, GRIDS["axial"]), file)
    assert refusal(file) == code


def test_colour_is_refused(tmp_path):
    colour = sitk.GetImageFromArray(np.ones((6, 5, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "colour.nrrd"))
    assert refusal(tmp_path / "colour.nrrd") == "not-scalar"
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(rgb, GRIDS["axial"]), tmp_path / "colour.nii")
    assert refusal(tmp_path / "colour.nii") == "not-scalar"


def nifti_with(path: Path, sform: int, qform: int, shift: float = 0.0) -> Path:
    image = nibabel.Nifti1Image(ARRAY, GRIDS["axial"])
    moved = GRIDS["axial"].copy()
    moved[0, 3] += shift
    image.set_sform(moved, sform)
    image.set_qform(GRIDS["axial"], qform)
    nibabel.save(image, path)
    return path


def test_transforms_that_disagree_or_are_absent_are_refused(tmp_path):
    assert refusal(nifti_with(tmp_path / "apart.nii.gz", 1, 1, shift=5.0)) == "geometry-contradiction"
    assert refusal(nifti_with(tmp_path / "none.nii.gz", 0, 0)) == "geometry-absent"


def test_the_one_transform_that_is_valid_counts(tmp_path):
    only_sform = read_volume(nifti_with(tmp_path / "s.nii.gz", 1, 0, shift=5.0))
    only_qform = read_volume(nifti_with(tmp_path / "q.nii.gz", 0, 1, shift=5.0))
    assert only_sform.grid.affine[0, 3] - only_qform.grid.affine[0, 3] == pytest.approx(5.0)


def test_a_sheared_grid_is_refused(tmp_path):
    affine = GRIDS["axial"].copy()
    affine[0, 1] = 0.2
    image = nibabel.Nifti1Image(ARRAY, None)
    image.set_sform(affine, 1)
    nibabel.save(image, tmp_path / "shear.nii.gz")
    assert refusal(tmp_path / "shear.nii.gz") == "geometry-shear"


def test_a_header_that_claims_more_than_memory_is_refused_before_loading(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, GRIDS["axial"])
    raw = bytearray(image.to_bytes())
    raw[40:48] = np.array([3, 30000, 30000, 30000], np.int16).tobytes()
    (tmp_path / "huge.nii").write_bytes(bytes(raw))
    assert refusal(tmp_path / "huge.nii") == "too-large"


def test_what_is_no_file_or_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "image.png").write_bytes(b"png")
    assert refusal(tmp_path / "folder.nii") == refusal(tmp_path / "absent.nii") == "file-missing"
    assert refusal(tmp_path / "image.png") == "file-kind"


def test_resampling_a_linear_field_gives_the_field_on_any_grid(grid):
    """Linear interpolation is exact on a linear field; only a wrong place could give other values."""
    slope = np.array([0.7, -0.4, 1.3])
    wide = Grid((60, 60, 60), np.diag([3.0, 3, 3, 1]) @ np.eye(4) + np.array([[0, 0, 0, -90]] * 3 + [[0, 0, 0, 0]]))
    index = np.stack(np.meshgrid(*[np.arange(60)] * 3, indexing="ij"), axis=-1)
    field = Volume((wide.to_world(index) @ slope).astype(np.float32), wide)
    moved = resample(field, grid)
    wanted = grid.to_world(np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)) @ slope
    assert np.abs(moved.array - wanted).max() < 1e-3


def test_free_memory_is_asked_of_the_system(monkeypatch, tmp_path):
    nibabel.save(nibabel.Nifti1Image(ARRAY, GRIDS["axial"]), tmp_path / "small.nii.gz")
    monkeypatch.setattr(volume_module, "available_memory", lambda: 1e4)
    assert refusal(tmp_path / "small.nii.gz") == "too-large"
