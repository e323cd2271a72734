"""HD95 and lesion-wise scores against hand-computed cases, brute force and SimpleITK's own filters."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from MTMed3DCore.evaluation.lesionwise import LesionWise, dilate, lesion_wise
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.evaluation.scoring import region_scores
from MTMed3DCore.evaluation.surface import hd95_mm
from MTMed3DCore.geometry import Grid

UNIT = (1.0, 1.0, 1.0)
SHAPE = (40, 36, 32)


def block(*corner: int, size: tuple[int, int, int] = (5, 5, 5), shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = True
    return mask


def blobs(seed: int, share: float = 0.04) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 2.0)
    return smooth > np.quantile(smooth, 1 - share)


def nothing() -> np.ndarray:
    return np.zeros(SHAPE, bool)


def brute_force_hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """Straight from the definition: every surface voxel against every other."""

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = np.ones_like(padded)
        for axis, step in product(range(3), (-1, 1)):
            inner &= np.roll(padded, step, axis)
        return np.argwhere(padded & ~inner) * np.asarray(spacing)

    distances = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    return max(float(np.percentile(distances.min(axis=axis), 95)) for axis in (0, 1))


@pytest.mark.parametrize("spacing", [UNIT, (0.9, 1.1, 5.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_hd95_is_what_every_pair_of_surface_voxels_gives(seed, spacing):
    a, b = blobs(seed), np.roll(blobs(seed), (2, 1, 0), (0, 1, 2)) | block(1, 1, 1, size=(3, 2, 2))
    assert hd95_mm(a, b, spacing) == pytest.approx(brute_force_hd95(a, b, spacing), abs=1e-4)
    assert hd95_mm(b, a, spacing) == pytest.approx(hd95_mm(a, b, spacing))


def test_hd95_of_a_shifted_block_is_its_shift_and_no_more_than_itks_hausdorff_distance():
    spacing = (1.0, 2.0, 3.0)
    a, b = block(5, 5, 5, size=(4, 4, 4)), block(5, 5, 7, size=(4, 4, 4))
    assert hd95_mm(a, b, spacing) == pytest.approx(6.0)
    images = []
    for mask in (a, b):
        image = sitk.GetImageFromArray(mask.transpose(2, 1, 0).astype(np.uint8))
        image.SetSpacing(spacing)
        images.append(image)
    itk = sitk.HausdorffDistanceImageFilter()
    itk.Execute(*images)
    assert hd95_mm(a, b, spacing) == pytest.approx(itk.GetHausdorffDistance(), abs=1e-4)


@pytest.mark.parametrize(
    ("found", "truth", "expected"),
    [(nothing(), nothing(), (1, 0)), (block(3, 3, 3), nothing(), (0, 374)), (nothing(), block(3, 3, 3), (0, 374))],
    ids=["both empty", "nothing true", "nothing found"],
)
def test_empty_cases_are_charged_by_the_rule_and_none_is_dropped(found, truth, expected):
    assert (dice(found, truth), hd95_mm(found, truth, UNIT)) == expected
    score = lesion_wise(found, truth, UNIT)
    assert (score.dice, score.hd95_mm) == expected


def test_a_mask_at_the_edge_of_the_volume_has_a_surface_there():
    assert hd95_mm(block(0, 0, 0), block(0, 0, 0, size=(5, 5, 8)), UNIT) == pytest.approx(3.0)


@pytest.mark.parametrize("seed", [3, 4])
def test_dice_is_that_of_simpleitks_overlap_filter(seed):
    a, b = blobs(seed, 0.1), blobs(seed + 10, 0.1)
    itk = sitk.LabelOverlapMeasuresImageFilter()
    itk.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (a, b)))
    assert dice(a, b) == pytest.approx(itk.GetDiceCoefficient(1))


def test_lesion_wise_charges_what_is_missed_and_what_is_false():
    """Three lesions of 125 mm³: one found exactly, one found shifted by a voxel, one missed; and one false part."""
    truth = block(2, 2, 2) | block(2, 20, 2) | block(25, 2, 2)
    found = block(2, 2, 2) | block(2, 21, 2) | block(30, 30, 25, size=(2, 2, 2))
    score = lesion_wise(found, truth, UNIT)
    assert (score.lesions, score.missed, score.false) == (3, 1, 1)
    assert score.dice == pytest.approx((1 + 0.8 + 0 + 0) / 4)
    assert score.hd95_mm == pytest.approx((0 + 1 + 374 + 374) / 4)


def test_true_parts_whose_dilations_touch_are_one_lesion():
    """Three steps of dilation on either side bridge six voxels between two blocks, not seven."""
    apart = {gap: block(2, 2, 2) | block(7 + gap, 2, 2) for gap in (6, 7)}
    assert lesion_wise(apart[6], apart[6], UNIT) == LesionWise(1.0, 0.0, 1, 0, 0)
    assert lesion_wise(apart[7], apart[7], UNIT) == LesionWise(1.0, 0.0, 2, 0, 0)


def test_a_found_part_belongs_to_a_lesion_from_three_voxels_away_and_is_false_beyond():
    truth, size = block(10, 10, 10), (2, 2, 2)
    near, far = truth | block(17, 10, 10, size=size), truth | block(18, 10, 10, size=size)
    assert lesion_wise(near, truth, UNIT).false == 0
    assert lesion_wise(near, truth, UNIT).dice == pytest.approx(2 * 125 / (125 + 133))
    assert lesion_wise(far, truth, UNIT).false == 1
    assert lesion_wise(far, truth, UNIT).dice == pytest.approx(0.5)


def test_lesions_of_fifty_cubic_millimetres_or_less_are_left_out_and_what_finds_them_is_not_false():
    large, fifty, fifty_one = block(2, 2, 2), block(25, 20, 20, size=(5, 5, 2)), block(25, 20, 20, size=(5, 5, 2))
    fifty_one[25, 20, 22] = True
    assert lesion_wise(large, large | fifty, UNIT) == LesionWise(1.0, 0.0, 1, 0, 0)
    assert lesion_wise(large | fifty, large | fifty, UNIT) == LesionWise(1.0, 0.0, 1, 0, 0)
    assert lesion_wise(large, large | fifty_one, UNIT).missed == 1
    assert lesion_wise(fifty, fifty, UNIT) == LesionWise(1.0, 0.0, 0, 0, 0)


def test_one_found_part_over_two_lesions_counts_for_each_of_them():
    truth = block(2, 2, 2) | block(2, 20, 2)
    bridge = block(2, 2, 2, size=(5, 23, 5))
    score = lesion_wise(bridge, truth, UNIT)
    assert (score.lesions, score.missed, score.false) == (2, 0, 0)
    assert score.dice == pytest.approx(2 * 125 / (125 + 575))


def test_dilation_away_from_one_millimetre_keeps_its_shape_in_millimetres():
    point = np.zeros((21, 21, 21), bool)
    point[10, 10, 10] = True
    offsets = np.argwhere(dilate(point, UNIT)) - 10
    assert np.abs(offsets).max() == 3
    assert np.abs(offsets).sum(axis=1).max() == 6
    assert len(offsets) == sum(sum(map(abs, each)) <= 6 for each in product(range(-3, 4), repeat=3))
    halved = np.argwhere(dilate(point, (0.5, 1.0, 3.0))) - 10
    assert np.abs(halved).max(axis=0).tolist() == [6, 3, 1]
    assert (np.abs(halved) @ [0.5, 1.0, 3.0]).max() == 6


def test_regions_of_label_maps_are_nested_and_measured_in_the_grids_millimetres():
    truth = np.zeros(SHAPE, np.uint8)
    truth[5:20, 5:20, 5:20] = 2
    truth[8:16, 8:16, 8:16] = 1
    truth[9:14, 9:14, 9:14] = 4
    found = np.where(truth == 4, 1, truth).astype(np.uint8)
    scores = region_scores(found, truth, Grid(SHAPE, np.diag([1.0, 1.0, 2.0, 1.0])))
    assert (scores["whole_tumour"].dice, scores["tumour_core"].dice, scores["enhancing"].dice) == (1, 1, 0)
    assert scores["enhancing"].hd95_mm == 374
    assert scores["whole_tumour"].truth_ml == pytest.approx(15**3 * 2 / 1000)
    assert (scores["enhancing"].found_ml, scores["enhancing"].missed) == (0, 1)
