"""Anchors, box decoding, and boxes of many windows as boxes of one volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.apps.detection.utils.box_coder import BoxCoder

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.inference.detection import BoxCollector, Level, level_anchors
from MTMed3DCore.inference.settings import InferenceSettings

SHAPES = [[20.0, 24.0, 28.0], [9.0, 7.0, 11.0]]
SETTINGS = InferenceSettings(anchor_shapes=SHAPES, anchor_scales=[1, 2], score_threshold=0.3)
WINDOW = (64, 64, 32)
LEVELS = [(16, 16, 8), (8, 8, 4)]
EVERYTHING = ((0, 0, 0), (1000, 1000, 1000))


def silent_maps() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.full((1, 2, *shape), -9.0), torch.zeros(1, 12, *shape)) for shape in LEVELS]


def put(
    maps: list[tuple[torch.Tensor, torch.Tensor]],
    box: list[float],
    start: tuple[int, int, int],
    level: int,
    place: tuple[int, int, int],
    anchor: int,
    logit: float,
) -> None:
    """Write into a window's maps what MONAI's coder says for a box of the whole volume."""
    side = np.array(SHAPES[anchor]) * SETTINGS.anchor_scales[level]
    stride = 4 * 2**level
    middle = np.array(place) * stride + stride // 2 + np.array(start)
    # MONAI rounds half the side to the even number.
    half = np.round(side / 2)
    reference = torch.tensor([*(middle - half), *(middle + half)], dtype=torch.float32)[None]
    code = BoxCoder((1.0,) * 6).encode_single(torch.tensor(box, dtype=torch.float32)[None], reference)[0]
    maps[level][0][(0, anchor, *place)] = logit
    maps[level][1][(0, slice(6 * anchor, 6 * anchor + 6), *place)] = code


def test_anchors_are_those_of_monai_in_its_order() -> None:
    generator = AnchorGeneratorWithAnchorShape(SETTINGS.anchor_scales, SHAPES)
    expected = generator(torch.zeros(1, 1, *WINDOW), [torch.zeros(1, 1, *shape) for shape in LEVELS])[0]
    torch.testing.assert_close(torch.cat(level_anchors(SETTINGS, WINDOW, LEVELS)), expected)


def test_a_first_level_anchor_stands_on_the_middle_of_its_place() -> None:
    first = level_anchors(SETTINGS, WINDOW, LEVELS)[0][0]
    torch.testing.assert_close(first, torch.tensor([2 - 10.0, 2 - 12.0, 2 - 14.0, 12.0, 14.0, 16.0]))


@pytest.mark.parametrize(("level", "place", "anchor"), [(0, (5, 9, 3), 1), (1, (6, 2, 1), 0)])
def test_a_box_coded_in_a_window_is_found_at_its_place_in_the_volume(
    level: int, place: tuple[int, int, int], anchor: int
) -> None:
    start = (32, 64, 96)
    box = [50.0, 81.5, 101.0, 71.25, 99.0, 118.0]
    maps = silent_maps()
    put(maps, box, start, level, place, anchor, logit=2.0)
    collector = BoxCollector(SETTINGS, (200, 200, 200))
    collector.add(maps, start, WINDOW, EVERYTHING)
    boxes, scores = collector.merged()
    np.testing.assert_allclose(boxes, [box], atol=1e-3)
    np.testing.assert_allclose(scores, [1 / (1 + np.exp(-2.0))], rtol=1e-6)


def test_each_anchor_is_taken_from_the_one_window_that_answers_for_its_place() -> None:
    # The places (8, 1, 1) of the first window and (0, 1, 1) of the second are one place, at x = 34.
    first, second = silent_maps(), silent_maps()
    put(first, [30, 0, 0, 44, 12, 12], (0, 0, 0), 0, (8, 1, 1), 0, logit=3.0)
    put(second, [100, 30, 0, 120, 50, 20], (32, 0, 0), 0, (0, 1, 1), 0, logit=1.0)
    collector = BoxCollector(SETTINGS, (200, 200, 200))
    collector.add(first, (0, 0, 0), WINDOW, ((0, 0, 0), (34, 64, 32)))
    collector.add(second, (32, 0, 0), WINDOW, ((34, 0, 0), (96, 64, 32)))
    boxes, _ = collector.merged()
    np.testing.assert_allclose(boxes, [[100, 30, 0, 120, 50, 20]], atol=1e-3)


def test_one_suppression_serves_all_windows_and_levels() -> None:
    first, second = silent_maps(), silent_maps()
    put(first, [40, 20, 4, 60, 40, 24], (0, 0, 0), 0, (12, 7, 3), 0, logit=1.0)
    put(second, [41, 20, 4, 61, 40, 24], (32, 0, 0), 1, (2, 3, 1), 0, logit=2.0)
    put(second, [70, 1, 1, 80, 9, 9], (32, 0, 0), 0, (10, 1, 1), 1, logit=0.5)
    collector = BoxCollector(SETTINGS, (96, 64, 32))
    collector.add(first, (0, 0, 0), WINDOW, EVERYTHING)
    collector.add(second, (32, 0, 0), WINDOW, EVERYTHING)
    boxes, scores = collector.merged()
    np.testing.assert_allclose(boxes, [[41, 20, 4, 61, 40, 24], [70, 1, 1, 80, 9, 9]], atol=1e-3)
    assert scores[0] > scores[1]


def test_boxes_are_cut_at_the_volume_and_dropped_beyond_it() -> None:
    maps = silent_maps()
    put(maps, [-5, 10, 10, 20, 30, 90], (0, 0, 0), 0, (2, 4, 4), 0, logit=1.0)
    put(maps, [52, 40, 10, 60, 50, 20], (0, 0, 0), 0, (13, 11, 4), 1, logit=2.0)
    collector = BoxCollector(SETTINGS, (50, 60, 28))
    collector.add(maps, (0, 0, 0), WINDOW, EVERYTHING)
    boxes, scores = collector.merged()
    np.testing.assert_allclose(boxes, [[0, 10, 10, 20, 30, 28]], atol=1e-3)
    np.testing.assert_allclose(scores, [1 / (1 + np.exp(-1.0))], rtol=1e-6)


def test_no_score_above_the_threshold_means_no_box() -> None:
    collector = BoxCollector(SETTINGS, (64, 64, 32))
    collector.add(silent_maps(), (0, 0, 0), WINDOW, EVERYTHING)
    boxes, scores = collector.merged()
    assert boxes.shape == (0, 6)
    assert scores.shape == (0,)


def test_maps_that_do_not_fit_the_anchors_are_refused() -> None:
    collector = BoxCollector(InferenceSettings(anchor_scales=[1, 2]), (64, 64, 32))
    with pytest.raises(ModelRefused, match="5 anchors") as refusal:
        collector.add(silent_maps(), (0, 0, 0), WINDOW, EVERYTHING)
    assert refusal.value.code == "anchors-mismatch"


def collected(maps: list[Level]) -> BoxCollector:
    """The boxes of one window that is the whole volume, before they are merged."""
    collector = BoxCollector(SETTINGS, (64, 64, 32))
    collector.add(maps, (0, 0, 0), WINDOW, EVERYTHING)
    return collector


@pytest.mark.parametrize("delta", [2, 4])
def test_deltas_that_are_not_finite_are_refused(delta: int) -> None:
    maps = silent_maps()
    maps[0][0][0, 0, 1, 1, 1] = 3.0
    maps[0][1][0, delta, 1, 1, 1] = float("nan")
    with pytest.raises(ModelRefused, match="not finite"):
        collected(maps).merged()


def test_a_score_that_is_not_a_number_is_refused_and_not_taken_for_no_box() -> None:
    maps = silent_maps()
    maps[1][0][0, 0, 1, 1, 1] = float("nan")
    with pytest.raises(ModelRefused, match="not finite"):
        collected(maps).merged()


def test_deltas_that_are_not_finite_matter_only_where_a_box_is_asked_for() -> None:
    maps = silent_maps()
    put(maps, [40, 20, 4, 60, 40, 24], (0, 0, 0), 0, (12, 7, 3), 0, logit=1.0)
    maps[0][1][0, 2:5:2, 1, 1, 1] = float("nan")
    assert len(collected(maps).merged()[0]) == 1
