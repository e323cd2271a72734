"""The stripped brain, the working grid, the way there and back, and normalisation."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensity
from scipy.spatial.transform import Rotation

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.preparation import normalise_tensor, prepare, to_native
from MTMed3DCore.preparation.brain import find_stripped_brain
from MTMed3DCore.preparation.grid import resample_axes, working_grid
from MTMed3DCore.preparation.normalise import normalise
from MTMed3DCore.sequences import SEQUENCES

RAMP = np.array([0.7, -1.3, 2.1])
AXES = {
    "RAS": np.eye(3),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "PIR": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=float),
}
DATA = Path(os.environ.get("MTMED3D_DATA", Path(__file__).parents[3] / "shared" / "data"))


def oblique_grid(axes: str = "LPS", shape=(40, 48, 22), spacing=(1.2, 0.9, 3.0)) -> Grid:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [17, -9, 12], degrees=True).as_matrix()
    affine[:3, :3] = turn @ AXES[axes] * np.asarray(spacing)
    affine[:3, 3] = [31.0, -12.5, 7.25]
    return Grid(shape, affine)


def voxel_centres(grid: Grid) -> np.ndarray:
    return grid.to_world(np.stack(np.indices(grid.shape), axis=-1))


def ramp(grid: Grid) -> np.ndarray:
    return (voxel_centres(grid) @ RAMP + 5.0).astype(np.float32)


def inside(grid: Grid, other: Grid, margin: float) -> np.ndarray:
    """Voxels of `grid` that lie further than `margin` voxels inside the outermost centres of `other`."""
    index = other.to_voxel(voxel_centres(grid))
    return ((index >= margin) & (index <= np.array(other.shape) - 1 - margin)).all(axis=-1)


def ellipsoid(grid: Grid, radii_mm: float) -> np.ndarray:
    middle = grid.to_world((np.array(grid.shape) - 1) / 2)
    return np.linalg.norm(voxel_centres(grid) - middle, axis=-1) < radii_mm


def stripped_study(grid: Grid, radius_mm: float = 15.0) -> SimpleNamespace:
    random = np.random.default_rng(0)
    brain = ellipsoid(grid, radius_mm)
    sequences = {
        name: SimpleNamespace(array=(brain * random.normal(100 * (i + 1), 10, grid.shape)).astype(np.float32))
        for i, name in enumerate(SEQUENCES)
    }
    return SimpleNamespace(sequences=sequences, grid=grid)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("spacing", [0.8, 1.0, 2.5, 4.0])
def test_a_world_ramp_survives_the_way_to_the_working_grid(axes: str, spacing: float) -> None:
    native = oblique_grid(axes)
    work = working_grid(native, VoxelBox((3, 4, 2), (37, 44, 20)), spacing, margin_mm=2.0)
    values = resample_axes(ramp(native), native, work, "edge")
    safe = inside(work, native, margin=max(0.0, spacing / 2 / native.spacing.min()))
    assert safe.sum() > 500
    np.testing.assert_allclose(values[safe], ramp(work)[safe], atol=2e-3)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("spacing", [1.0, 2.5])
def test_a_world_ramp_survives_the_way_back(axes: str, spacing: float) -> None:
    native = oblique_grid(axes)
    work = working_grid(native, VoxelBox((0, 0, 0), native.shape), spacing)
    prepared = SimpleNamespace(grid=work, native=native)
    back = to_native(prepared, np.stack([ramp(work), -ramp(work)]))
    assert back.shape == (2, *native.shape)
    assert back.dtype == np.float32
    safe = inside(native, work, margin=1.6)
    assert safe.sum() > 5000
    np.testing.assert_allclose(back[0][safe], ramp(native)[safe], atol=2e-3)
    np.testing.assert_allclose(back[1][safe], -ramp(native)[safe], atol=2e-3)


@pytest.mark.parametrize("axes", AXES)
def test_the_working_grid_is_isotropic_nearest_to_ras_and_holds_the_box(axes: str) -> None:
    native = oblique_grid(axes)
    box = VoxelBox((5, 6, 3), (30, 40, 18))
    work = working_grid(native, box, 1.5, margin_mm=3.0)
    np.testing.assert_allclose(work.spacing, 1.5)
    assert nib.aff2axcodes(work.affine) == ("R", "A", "S")
    assert (np.diag(work.axes) > 0.9).all()
    held = box.to_world(native).to_voxel(work)
    assert (np.array(held.lower) >= 3.0 / 1.5 - 1e-6).all()
    assert (np.array(work.shape) - held.upper >= 3.0 / 1.5 - 1e-6).all()
    assert (np.array(work.shape) - held.size <= 2 * 3.0 / 1.5 + 1).all()


def test_a_ras_scan_at_the_working_spacing_is_cropped_without_interpolation() -> None:
    native = Grid((30, 32, 34), np.diag([1.0, 1.0, 1.0, 1.0]))
    array = np.random.default_rng(1).random(native.shape, dtype=np.float32)
    work = working_grid(native, VoxelBox((8, 9, 10), (20, 21, 22)), 1.0)
    np.testing.assert_array_equal(resample_axes(array, native, work, "edge"), array[2:26, 3:27, 4:28])


def test_coarse_sampling_averages_instead_of_aliasing() -> None:
    native = Grid((64, 8, 8), np.eye(4))
    stripes = np.zeros(native.shape, dtype=np.float32)
    stripes[::2] = 1.0
    work = working_grid(native, VoxelBox((0, 0, 0), native.shape), 4.0)
    values = resample_axes(stripes, native, work, "edge")
    np.testing.assert_allclose(values[1:-1], 0.5, atol=1e-6)


def test_grids_that_are_turned_against_each_other_are_refused() -> None:
    turned = oblique_grid()
    with pytest.raises(ValueError, match="axes differ"):
        resample_axes(np.zeros(turned.shape), turned, Grid((9, 9, 9), np.eye(4)), "edge")


def test_nothing_is_claimed_beyond_the_working_grid() -> None:
    native = Grid((30, 30, 30), np.eye(4))
    work = working_grid(native, VoxelBox((10, 10, 10), (20, 20, 20)), 1.0, margin_mm=0.0)
    back = to_native(SimpleNamespace(grid=work, native=native), np.ones((1, *work.shape), dtype=np.float32))
    assert back.sum() == pytest.approx(1000.0)
    assert back[0, 10:20, 10:20, 10:20].min() == 1.0


def test_a_stripped_study_yields_its_brain_with_holes_filled_and_specks_dropped() -> None:
    grid = oblique_grid()
    study = stripped_study(grid)
    truth = ellipsoid(grid, 15.0)
    arrays = {name: volume.array.copy() for name, volume in study.sequences.items()}
    for array in arrays.values():
        array[19:22, 23:26, 10:12] = 0.0
        array[2, 2, 2] = 50.0
    arrays["t2"][35:38, 40:44, 10] = 80.0
    found = find_stripped_brain(arrays, grid)
    assert found is not None
    np.testing.assert_array_equal(found.mask, truth)
    assert found.agreement > 0.95


def test_a_constant_background_other_than_zero_is_background_too() -> None:
    grid = oblique_grid()
    arrays = {name: volume.array - 7.0 for name, volume in stripped_study(grid).sequences.items()}
    found = find_stripped_brain(arrays, grid)
    assert found is not None
    np.testing.assert_array_equal(found.mask, ellipsoid(grid, 15.0))


def test_a_study_with_noise_round_the_head_is_analysed_with_a_notice() -> None:
    grid = oblique_grid()
    noise = np.random.default_rng(2).gamma(2.0, 4.0, grid.shape)
    study = stripped_study(grid)
    for volume in study.sequences.values():
        volume.array = volume.array + noise.astype(np.float32)
    prepared = prepare(study, spacing_mm=2.0)
    truth = ellipsoid(grid, 15.0)
    brain = prepared.record.brain
    assert not prepared.stripped
    assert "not-skull-stripped" in [notice.code for notice in prepared.warnings]
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.98


@pytest.mark.parametrize(("axis", "name"), [(0, "t1"), (1, "t2"), (2, "flair")])
def test_a_sequence_that_a_reader_filled_up_with_zeros_is_told_with_its_share(axis: int, name: str) -> None:
    study = stripped_study(oblique_grid())
    array = study.sequences[name].array.copy()
    array.swapaxes(0, axis)[array.shape[axis] // 2 :] = 0
    study.sequences[name].array = array
    (notice,) = [each for each in prepare(study, spacing_mm=2.0).warnings if each.code == "brain-not-covered"]
    assert notice.text.startswith(f"The {name} is empty in ")
    assert 30 <= int(notice.text.split("%")[0].rsplit(" ", 1)[1]) <= 60


def test_dark_fluid_that_is_exactly_zero_is_not_taken_for_a_file_cut_short() -> None:
    grid = oblique_grid()
    study = stripped_study(grid)
    array = study.sequences["flair"].array.copy()
    array[ellipsoid(grid, 9.0)] = 0
    study.sequences["flair"].array = array
    assert prepare(study, spacing_mm=2.0).warnings == ()


def test_a_head_with_zeroed_air_is_not_taken_for_a_brain() -> None:
    grid = Grid((60, 60, 60), np.diag([4.0, 4.0, 4.0, 1.0]))
    arrays = {name: volume.array for name, volume in stripped_study(grid, 100.0).sequences.items()}
    assert find_stripped_brain(arrays, grid) is None


@pytest.mark.parametrize("value", [0.0, 12.0])
def test_blank_sequences_are_refused(value: float) -> None:
    grid = oblique_grid()
    with pytest.raises(InputRefused, match="tissue") as refusal:
        find_stripped_brain(dict.fromkeys(SEQUENCES, np.full(grid.shape, value, dtype=np.float32)), grid)
    assert refusal.value.code == "brain-empty"


def test_prepare_normalises_inside_the_brain_and_zeroes_the_rest() -> None:
    study = stripped_study(oblique_grid("PIR"))
    told: list[tuple[str, float]] = []
    prepared = prepare(study, spacing_mm=2.0, progress=lambda stage, fraction, text: told.append((stage, fraction)))
    assert prepared.image.shape == (4, *prepared.grid.shape)
    assert prepared.image.dtype == np.float32
    assert prepared.stripped
    assert (prepared.image[:, ~prepared.brain] == 0).all()
    np.testing.assert_allclose(prepared.image[:, prepared.brain].mean(axis=1), 0.0, atol=0.02)
    volume = prepared.brain.sum() * prepared.grid.voxel_volume_ml
    assert volume == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.08)
    assert told == sorted(told)
    assert told[-1] == ("prepare", 1.0)


def test_zscore_brain_measures_each_sequence_inside_the_brain_and_cuts_outliers_off() -> None:
    random = np.random.default_rng(3)
    image = random.normal(50, 7, (4, 12, 13, 14)).astype(np.float32)
    brain = random.random((12, 13, 14)) < 0.4
    result = normalise(image, brain)
    expected = (image[2][brain] - image[2][brain].mean(dtype=np.float64)) / image[2][brain].std(dtype=np.float64)
    np.testing.assert_allclose(result[2][brain], expected, atol=1e-4)
    assert (result[:, ~brain] == 0).all()
    image[1][tuple(np.argwhere(brain)[0])] = 1e6
    assert normalise(image, brain)[1].max() == 6.0


def test_zscore_nonzero_is_what_monai_computes() -> None:
    random = np.random.default_rng(4)
    image = random.normal(0, 7, (4, 9, 10, 11)).astype(np.float32) * (random.random((4, 9, 10, 11)) < 0.6)
    expected = NormalizeIntensity(nonzero=True, channel_wise=True)(torch.from_numpy(image.copy())).numpy()
    ours = normalise(image, np.zeros((9, 10, 11), dtype=bool), "zscore_nonzero")
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_batch_is_normalised_study_by_study() -> None:
    image = torch.randn(2, 4, 8, 8, 8) * 3 + 20
    brain = torch.rand(2, 1, 8, 8, 8) < 0.5
    both = normalise_tensor(image, brain)
    torch.testing.assert_close(both[1], normalise_tensor(image[1], brain[1, 0]))


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(WrongUse, match="'minmax'"):
        normalise_tensor(torch.zeros(4, 2, 2, 2), torch.ones(2, 2, 2), "minmax")


def real(folder: str) -> tuple[dict[str, np.ndarray], Grid]:
    if not (DATA / folder).is_dir():
        pytest.skip(f"no real study at {DATA / folder}; set MTMED3D_DATA")
    images = {name: nib.load(DATA / folder / f"{name}.nii.gz") for name in SEQUENCES}
    arrays = {name: np.asarray(image.dataobj, dtype=np.float32) for name, image in images.items()}
    return arrays, Grid(images["t1ce"].shape, images["t1ce"].affine)


def test_a_brats_study_is_seen_to_be_stripped() -> None:
    arrays, grid = real("cases/BraTS2021_00495")
    found = find_stripped_brain(arrays, grid)
    assert found is not None
    assert 1000 < found.mask.sum() * grid.voxel_volume_ml < 2000
    assert (found.mask & (arrays["t1ce"] > 0)).sum() == pytest.approx((arrays["t1ce"] > 0).sum(), rel=0.01)


def test_a_native_scan_is_seen_not_to_be_stripped() -> None:
    arrays, grid = real("native/TCGA-FG-6692")
    assert find_stripped_brain(dict.fromkeys(SEQUENCES, arrays["t1ce"]), grid) is None
