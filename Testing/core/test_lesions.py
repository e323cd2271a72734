"""Lesions: what is measured, and how regions and boxes are reconciled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.inference.lesions import find_lesions, label_map, tumour_components
from MTMed3DCore.measurements import longest_diameter_mm

HALF = (0.5, 0.5, 0.5)
ISOTROPIC = Grid((80, 80, 80), np.diag([-1.0, -1.0, 1.0, 1.0]))


def oblique_grid(shape=(90, 70, 40), spacing=(0.9, 1.3, 2.5)) -> Grid:
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", [17, -9, 12], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) * np.asarray(spacing)
    affine[:3, 3] = [31.0, -12.5, 7.25]
    return Grid(shape, affine)


def ellipsoid(grid: Grid, centre_mm: np.ndarray, semi_axes_mm: list[float], turn: np.ndarray) -> np.ndarray:
    points = grid.to_world(np.stack(np.indices(grid.shape), axis=-1)) - centre_mm
    return (((points @ turn) / semi_axes_mm) ** 2).sum(axis=-1) <= 1.0


def regions_of(*cubes: tuple[slice, slice, slice], probability: float = 0.8) -> np.ndarray:
    """Whole tumour in cubes, with core and enhancing tumour in nested parts of the first."""
    regions = np.zeros((3, *ISOTROPIC.shape), dtype=np.float32)
    for cube in cubes:
        regions[(1, *cube)] = probability
    first = cubes[0]
    regions[(0, *(slice(s.start + 2, s.stop - 2) for s in first))] = 0.9
    regions[(2, *(slice(s.start + 4, s.stop - 4) for s in first))] = 0.9
    return regions


def cube(low: int, side: int) -> tuple[slice, slice, slice]:
    return (slice(low, low + side),) * 3


def lesions_of(
    regions: np.ndarray,
    boxes: list[list[float]],
    scores: list[float],
    **settings: float,
):
    detected = [VoxelBox.from_list(box) for box in boxes]
    return find_lesions(regions, detected, scores, ISOTROPIC, InferenceSettings(**settings))


def voxel_box(lesion) -> list[float]:
    return np.round(lesion.box.to_voxel(ISOTROPIC).to_list(), 6).tolist()


def test_an_ellipsoid_on_an_oblique_grid_has_its_true_volume_and_diameter() -> None:
    grid = oblique_grid()
    centre = grid.to_world((np.array(grid.shape) - 1) / 2)
    turn = Rotation.from_euler("zyx", [40, 25, 10], degrees=True).as_matrix()
    mask = ellipsoid(grid, centre, [28.0, 15.0, 12.0], turn)
    regions = np.stack([mask * 0.0, mask * 0.9, mask * 0.0])
    found = find_lesions(regions, [], [], grid, InferenceSettings())
    (lesion,) = found.lesions
    assert lesion.volumes_ml["whole_tumour"] == pytest.approx(4 / 3 * np.pi * 2.8 * 1.5 * 1.2, rel=0.01)
    assert lesion.volumes_ml["oedema"] == pytest.approx(lesion.volumes_ml["whole_tumour"])
    assert lesion.volumes_ml["tumour_core"] == 0.0
    assert lesion.longest_diameter_mm == pytest.approx(56.0, abs=1.3)
    np.testing.assert_allclose(lesion.box.center, centre, atol=2.5)
    np.testing.assert_allclose(lesion.box.axes, grid.axes)


@pytest.mark.parametrize(("sides", "expected"), [((1, 1, 1), 2.5), ((40, 1, 1), 36.0), ((21, 31, 1), np.hypot(18, 39))])
def test_flat_thin_and_single_voxel_tumours_have_a_diameter(sides: tuple[int, int, int], expected: float) -> None:
    grid = oblique_grid()
    mask = np.zeros(grid.shape, dtype=bool)
    mask[5 : 5 + sides[0], 6 : 6 + sides[1], 7 : 7 + sides[2]] = True
    assert longest_diameter_mm(mask, grid) == pytest.approx(expected, abs=0.05 if 1 in sides[:2] else 1.3)


def test_regions_are_nested_from_the_inside_out() -> None:
    regions = np.zeros((3, 4, 1, 1))
    regions[1, :3] = 0.9
    regions[0, :2] = 0.9
    regions[2, 0] = 0.9
    regions[2, 3] = 0.9
    assert label_map(regions, HALF).ravel().tolist() == [4, 1, 2, 4]


def test_parts_close_together_are_one_tumour_and_far_apart_two() -> None:
    tumour = np.zeros(ISOTROPIC.shape, dtype=bool)
    tumour[10:15, 10:15, 10:15] = True
    tumour[18:23, 10:15, 10:15] = True
    tumour[40:45, 10:15, 10:15] = True
    components = tumour_components(tumour, ISOTROPIC, 0.0)
    assert components[12, 12, 12] == components[20, 12, 12] != components[42, 12, 12]
    assert components.max() == 2
    assert ((components > 0) == tumour).all()


def test_voxels_that_touch_across_thick_slices_are_one_tumour() -> None:
    grid = Grid((10, 10, 6), np.diag([1.0, 1.0, 6.0, 1.0]))
    tumour = np.zeros(grid.shape, dtype=bool)
    tumour[2:4, 2:4, 1] = True
    tumour[4:6, 4:6, 2] = True
    assert tumour_components(tumour, grid, 0.0).max() == 1


def test_specks_below_the_least_volume_leave_labels_and_lesions() -> None:
    found = lesions_of(regions_of(cube(10, 16), cube(50, 4)), [], [], minimum_lesion_ml=0.1)
    assert len(found.lesions) == 1
    assert found.labels[52, 52, 52] == 0
    assert sorted(np.unique(found.labels)) == [0, 1, 2, 4]


def test_a_matched_lesion_keeps_the_score_and_takes_the_box_of_its_voxels() -> None:
    found = lesions_of(regions_of(cube(10, 16)), [[8, 9, 11, 28, 27, 25]], [0.77])
    (lesion,) = found.lesions
    assert (lesion.id, lesion.score, lesion.origin) == (1, 0.77, "detection")
    assert voxel_box(lesion) == [10, 10, 10, 26, 26, 26]
    assert lesion.volumes_ml["whole_tumour"] == pytest.approx(16**3 / 1000)
    assert lesion.volumes_ml["tumour_core"] == pytest.approx(12**3 / 1000)
    assert lesion.volumes_ml["enhancing"] == pytest.approx(8**3 / 1000)
    assert lesion.volumes_ml["necrotic_core"] == pytest.approx((12**3 - 8**3) / 1000)
    assert lesion.volumes_ml["oedema"] == pytest.approx((16**3 - 12**3) / 1000)
    assert found.notices == ()


def test_a_region_without_a_box_is_a_lesion_of_lower_score_with_a_notice() -> None:
    found = lesions_of(regions_of(cube(10, 16)), [], [])
    (lesion,) = found.lesions
    assert lesion.origin == "region"
    assert lesion.score == pytest.approx(0.4)
    assert voxel_box(lesion) == [10, 10, 10, 26, 26, 26]
    assert [notice.code for notice in found.notices] == ["region-without-box"]


def test_a_box_without_tumour_is_a_lesion_without_volume_with_a_notice() -> None:
    found = lesions_of(regions_of(cube(10, 16)), [[9, 9, 9, 27, 27, 27], [50, 50, 50, 60, 70, 80]], [0.9, 0.3])
    empty = found.lesions[1]
    assert (empty.id, empty.score, empty.origin) == (2, 0.3, "detection")
    assert voxel_box(empty) == [50, 50, 50, 60, 70, 80]
    assert set(empty.volumes_ml.values()) == {0.0}
    assert empty.longest_diameter_mm == pytest.approx(np.sqrt(10**2 + 20**2 + 30**2))
    assert [notice.code for notice in found.notices] == ["box-without-region"]


def test_a_box_without_a_region_is_left_aside_below_the_score_that_such_boxes_need():
    boxes, regions = [[9, 9, 9, 27, 27, 27], [50, 50, 50, 60, 70, 80]], regions_of(cube(10, 16))
    assert len(lesions_of(regions, boxes, [0.4, 0.6], bare_box_score=0.6).lesions) == 2
    kept = lesions_of(regions, boxes, [0.4, 0.6], bare_box_score=0.7)
    (lesion,) = kept.lesions
    assert (lesion.origin, lesion.score) == ("detection", 0.4)
    assert kept.notices == ()


def test_two_tumours_in_one_box_are_one_lesion() -> None:
    found = lesions_of(regions_of(cube(10, 16), cube(36, 10)), [[8, 8, 8, 48, 48, 48]], [0.6])
    (lesion,) = found.lesions
    assert voxel_box(lesion) == [10, 10, 10, 46, 46, 46]
    assert lesion.volumes_ml["whole_tumour"] == pytest.approx((16**3 + 10**3) / 1000)


def test_a_tumour_in_two_boxes_belongs_to_the_better_fitting_and_the_other_box_is_dropped() -> None:
    boxes = [[0, 0, 0, 60, 60, 60], [9, 9, 9, 27, 27, 27]]
    found = lesions_of(regions_of(cube(10, 16)), boxes, [0.9, 0.5])
    (lesion,) = found.lesions
    assert lesion.score == 0.5
    assert found.notices == ()


def test_each_tumour_goes_to_its_own_box_and_lesions_are_ordered_by_score() -> None:
    boxes = [[9, 9, 9, 27, 27, 27], [49, 49, 49, 61, 61, 61]]
    found = lesions_of(regions_of(cube(10, 16), cube(50, 10)), boxes, [0.5, 0.8])
    assert [(lesion.id, lesion.score) for lesion in found.lesions] == [(1, 0.8), (2, 0.5)]
    assert voxel_box(found.lesions[0]) == [50, 50, 50, 60, 60, 60]


def test_boxes_outside_the_grid_or_below_the_threshold_are_left_aside() -> None:
    boxes = [[-30, -30, -30, -2, -2, -2], [50, 50, 50, 60, 60, 60]]
    found = lesions_of(regions_of(cube(10, 16)), boxes, [0.9, 0.05])
    assert [lesion.origin for lesion in found.lesions] == ["region"]


def test_nothing_found_is_no_lesion_and_an_empty_label_map() -> None:
    found = lesions_of(np.zeros((3, *ISOTROPIC.shape), dtype=np.float32), [], [])
    assert found.lesions == ()
    assert not found.labels.any()


def test_one_notice_names_every_region_that_has_no_box() -> None:
    found = lesions_of(regions_of(cube(10, 16), cube(46, 10)), [], [])
    (notice,) = found.notices
    assert notice.text == "Segmented, but not found by the box detector: lesion 1 (4.1 ml), 2 (1.0 ml)."


def test_brightness_apart_from_the_tumour_without_core_is_left_out_and_told() -> None:
    regions = regions_of(cube(10, 16), cube(50, 12))
    found = lesions_of(regions, [[9, 9, 9, 27, 27, 27]], [0.9], minimum_core_share=0.05)
    assert [lesion.origin for lesion in found.lesions] == ["detection"]
    assert not found.labels[50:62, 50:62, 50:62].any()
    (notice,) = found.notices
    assert notice.code == "brightness-left-out"
    assert notice.text.startswith("1.7 ml apart from the tumour")
    assert "round R -56, A -56, S 56 mm" in notice.text  # RAS mm of voxel 55.5 on a grid whose first two axes run back


def test_a_small_region_that_no_box_is_about_is_left_out_and_told() -> None:
    regions = regions_of(cube(10, 16), cube(50, 12))
    found = lesions_of(regions, [[9, 9, 9, 27, 27, 27]], [0.9], minimum_lone_ml=2.0)
    assert [lesion.origin for lesion in found.lesions] == ["detection"]
    assert not found.labels[50:62, 50:62, 50:62].any()
    assert found.labels[10:26, 10:26, 10:26].any()
    (notice,) = found.notices
    assert notice.code == "unboxed-left-out"
    assert notice.text.startswith("1.7 ml look like tumour to the segmentation, but not to the box detector")
    assert "round R -56, A -56, S 56 mm" in notice.text


def test_a_large_region_is_reported_though_no_box_is_about_it() -> None:
    found = lesions_of(regions_of(cube(10, 16)), [], [], minimum_lone_ml=4.0)
    assert [lesion.origin for lesion in found.lesions] == ["region"]
    assert [notice.code for notice in found.notices] == ["region-without-box"]


def test_a_small_region_stays_where_nothing_looks_for_boxes() -> None:
    settings = InferenceSettings(minimum_lone_ml=5.0)
    found = find_lesions(regions_of(cube(10, 16)), [], [], ISOTROPIC, settings, detects=False)
    assert len(found.lesions) == 1


def test_brightness_that_a_box_is_about_stays_though_it_has_no_core() -> None:
    boxes = [[9, 9, 9, 27, 27, 27], [49, 49, 49, 63, 63, 63]]
    found = lesions_of(regions_of(cube(10, 16), cube(50, 12)), boxes, [0.9, 0.3], minimum_core_share=0.05)
    assert [lesion.score for lesion in found.lesions] == [0.9, 0.3]
    assert found.notices == ()


def test_a_box_round_both_is_about_the_tumour_and_not_about_the_brightness_beside_it() -> None:
    found = lesions_of(regions_of(cube(10, 16), cube(36, 10)), [[8, 8, 8, 38, 38, 38]], [0.6], minimum_core_share=0.05)
    (lesion,) = found.lesions
    assert voxel_box(lesion) == [10, 10, 10, 26, 26, 26]


def test_a_share_of_core_beyond_the_least_keeps_a_second_tumour() -> None:
    regions = regions_of(cube(10, 16), cube(50, 12))
    regions[(0, *cube(53, 6))] = 0.9
    found = lesions_of(regions, [], [], minimum_core_share=0.05)
    assert len(found.lesions) == 2


def test_a_tumour_without_any_core_is_kept_where_nothing_has_core() -> None:
    regions = regions_of(cube(10, 16), cube(50, 12))
    regions[[0, 2]] = 0.0
    found = lesions_of(regions, [], [], minimum_core_share=0.3)
    assert len(found.lesions) == 2


def test_a_little_brightness_is_left_out_without_a_notice() -> None:
    found = lesions_of(regions_of(cube(10, 16), cube(50, 9)), [[9, 9, 9, 27, 27, 27]], [0.9], minimum_core_share=0.05)
    assert not found.labels[50:59, 50:59, 50:59].any()
    assert found.notices == ()
