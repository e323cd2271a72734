"""Measurements on the native grid, against shapes whose measures are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MTMed3DCore.geometry import Grid
from MTMed3DCore.measurements import (
    bidimensional,
    compare,
    laterality,
    longest_diameter_mm,
    midplane,
    sum_of_products,
)
from Testing.example_findings import GRIDS, findings_on, rotation


def grid_of(spacing, shape=(64, 64, 12), turn=(0.0, 0.0, 0.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*turn) * spacing
    return Grid(shape, affine)


def ellipse(grid: Grid, long_mm: float, short_mm: float, degrees: float, slices=slice(4, 7)) -> np.ndarray:
    """An elliptic cylinder along the third array axis, its diameters in the plane of the first two."""
    x, y = (np.indices(grid.shape)[a] - (grid.shape[a] - 1) / 2 for a in (0, 1))
    x, y = x * grid.spacing[0], y * grid.spacing[1]
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    inside = ((c * x + s * y) / (long_mm / 2)) ** 2 + ((c * y - s * x) / (short_mm / 2)) ** 2 <= 1
    mask = np.zeros(grid.shape, bool)
    mask[..., slices] = inside[..., slices]
    return mask


@pytest.mark.parametrize("degrees", [0, 30, 77])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 5.0), (0.7, 1.1, 3.0)])
def test_an_ellipse_has_the_diameters_it_was_drawn_with(spacing, degrees) -> None:
    grid = grid_of(spacing, turn=(17, -9, 12))
    measured = bidimensional(ellipse(grid, 36, 20, degrees), grid)
    assert measured["longest_mm"] == pytest.approx(36, abs=1.2)
    assert measured["perpendicular_mm"] == pytest.approx(20, abs=1.2)
    assert measured["product_mm2"] == measured["longest_mm"] * measured["perpendicular_mm"]
    assert measured["measurable"]
    assert measured["slices"] == 3
    first, second = np.diff(np.array(measured["ends_ras_mm"]), axis=1)[:, 0]
    assert np.linalg.norm(first) == pytest.approx(measured["longest_mm"])
    assert np.linalg.norm(second) == pytest.approx(measured["perpendicular_mm"])
    assert abs(first @ second) < 1e-6 * np.linalg.norm(first) * np.linalg.norm(second)


def test_the_slice_with_the_greatest_product_counts() -> None:
    grid = grid_of((1.0, 1.0, 4.0))
    mask = ellipse(grid, 40, 8, 0, slice(2, 3)) | ellipse(grid, 24, 22, 0, slice(7, 9))
    measured = bidimensional(mask, grid)
    assert measured["slice_index"] in (7, 8)
    assert measured["longest_mm"] == pytest.approx(24, abs=1.2)


def test_axial_slices_are_found_on_a_sagittal_scan() -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 5.0], [1.0, 0, 0], [0, 1.0, 0]])  # array axes A, S, R
    mask = np.zeros((60, 50, 12), bool)
    mask[10:40, 20:24, 3:6] = True
    measured = bidimensional(mask, Grid(mask.shape, affine))
    assert measured["slice_axis"] == 1
    assert measured["slices"] == 4
    # A rectangle of 30 mm by 15 mm: its diagonal, and what stands upright on it.
    assert measured["longest_mm"] == pytest.approx(np.hypot(29, 10) + 1, abs=2.0)


def test_enclosed_necrosis_is_spanned_and_a_gap_between_regions_is_not() -> None:
    grid = grid_of((1.0, 1.0, 5.0))
    ring = ellipse(grid, 30, 30, 0) & ~ellipse(grid, 22, 22, 0)
    assert bidimensional(ring, grid)["perpendicular_mm"] == pytest.approx(30, abs=1.2)
    two = np.zeros(grid.shape, bool)
    two[5:17, 5:17, 4:6] = two[40:52, 40:52, 4:6] = True
    assert bidimensional(two, grid)["longest_mm"] < 18


@pytest.mark.parametrize(
    ("spacing", "diameters", "slices", "reason"),
    [
        ((1.0, 1.0, 5.0), (30, 8), 3, "below 10 mm"),
        ((1.0, 1.0, 5.0), (30, 14), 1, "fewer than 2"),
        ((1.0, 1.0, 6.5), (30, 12), 3, "below 13 mm"),
        ((1.0, 1.0, 6.5), (30, 15), 3, None),
        ((1.0, 1.0, 5.0), (30, 12), 2, None),
    ],
)
def test_what_is_measurable_follows_size_slices_and_slice_distance(spacing, diameters, slices, reason) -> None:
    grid = grid_of(spacing)
    measured = bidimensional(ellipse(grid, *diameters, 20, slice(4, 4 + slices)), grid)
    assert measured["measurable"] == (reason is None)
    assert reason is None or reason in measured["reason"]


def test_nothing_enhancing_is_not_measured() -> None:
    grid = grid_of((1.0, 1.0, 5.0))
    assert bidimensional(np.zeros(grid.shape, bool), grid) is None


def test_one_voxel_measures_one_voxel() -> None:
    grid = grid_of((0.9, 0.9, 5.5))
    mask = np.zeros(grid.shape, bool)
    mask[5, 6, 7] = True
    measured = bidimensional(mask, grid)
    assert (measured["longest_mm"], measured["perpendicular_mm"]) == pytest.approx((0.9, 0.9))
    assert measured["slice_index"] == 7
    assert longest_diameter_mm(mask, grid) == pytest.approx(5.5)


def test_the_sum_takes_the_five_largest_measurable_lesions() -> None:
    lesions = [{"product_mm2": float(p), "measurable": True} for p in (100, 700, 300, 200, 500, 600)]
    assert sum_of_products([*lesions, None, {"product_mm2": 9000.0, "measurable": False}]) == 2300


def test_sides_are_the_patients_and_follow_a_tilted_head() -> None:
    grid = grid_of((2.0, 2.0, 2.0), (90, 100, 80), turn=(5, 12, 9))
    centres = np.stack(np.indices(grid.shape), -1) - (np.array(grid.shape) - 1) / 2
    brain = ((centres / (34, 42, 32)) ** 2).sum(-1) < 1
    plane = midplane(brain, grid)
    for place, side in ((12, "right"), (-12, "left"), (0, "bilateral")):
        # 24 mm beside the head's own midplane, far forward, where the scanner's midplane would mislead.
        tumour = ((centres - (place, 34, 0)) ** 2).sum(-1) < 25
        assert laterality(tumour, grid, plane)["side"] == side
    assert laterality(np.zeros(grid.shape, bool), grid, plane) is None


def test_a_comparison_says_what_grew_and_what_shrank() -> None:
    prior = findings_on(GRIDS["axial"])
    rano = {"product_mm2": 400.0, "measurable": True}
    prior = replace(prior, lesions=(replace(prior.lesions[0], rano=rano), prior.lesions[1]))
    labels = prior.labels.copy()
    labels[labels == 1] = 4
    grown = replace(prior.lesions[0], rano={"product_mm2": 520.0, "measurable": True})
    change = compare(replace(prior, labels=labels, lesions=(grown, *prior.lesions)), prior)
    assert change["sum_of_products_mm2"] == {"prior": 400.0, "current": 920.0, "percent": pytest.approx(130.0)}
    assert "grew by 25 %" in change["reading"]
    assert change["new_lesions"] == 1
    assert change["same_model"]
    assert change["volumes_ml"]["whole_tumour"]["percent"] == pytest.approx(0.0)
    assert change["volumes_ml"]["necrotic_core"]["percent"] == pytest.approx(-100.0)


def test_a_comparison_with_nothing_before_has_no_percentage() -> None:
    empty, now = findings_on(GRIDS["axial"], tumour=False), findings_on(GRIDS["axial"])
    change = compare(now, empty)
    assert change["volumes_ml"]["whole_tumour"]["percent"] is None
    assert change["reading"] == "no measurable enhancing lesion in either study"
