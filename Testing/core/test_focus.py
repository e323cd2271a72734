"""Where a quick analysis lays its windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MTMed3DCore.inference.focus import FACTOR, MARGIN, cut, focus_windows, needed_windows
from MTMed3DCore.inference.tiling import plan_windows

EXTENT = (160, 192, 160)
TILING = plan_windows(EXTENT, 96)[1]
NO_BOXES = np.zeros((0, 6), dtype=np.float32)


def own(extent: tuple[int, int, int]) -> tuple[int, int, int]:
    """Sides of the model's own windows, not longer than the volume."""
    x, y, z = (min(96, side) for side in extent)
    return x, y, z


def seen_at(*places: tuple[slice, slice, slice]) -> np.ndarray:
    """What a glance saw, from places in full resolution."""
    seen = np.zeros([n // FACTOR for n in EXTENT], dtype=bool)
    for place in places:
        seen[tuple(slice(axis.start // FACTOR, -(-axis.stop // FACTOR)) for axis in place)] = True
    return seen


def covered(windows: list) -> np.ndarray:
    volume = np.zeros(EXTENT, dtype=bool)
    for window in windows:
        volume[window.slices] = True
    return volume


@pytest.mark.parametrize("low", [(0, 0, 0), (33, 50, 41), (100, 130, 95), (62, 95, 64)])
def test_one_window_holds_a_small_tumour_away_from_its_border_wherever_it_lies(low):
    place = tuple(slice(a, a + 30) for a in low)
    (window,) = focus_windows(seen_at(place), NO_BOXES, TILING, own)
    assert window.size == (96, 96, 96)
    assert all(start % 32 == 0 for start in window.start)
    for axis, inside, full in zip(place, window.slices, EXTENT, strict=True):
        assert inside.start <= axis.start
        assert axis.stop <= inside.stop <= full
        assert inside.start == 0 or axis.start - inside.start >= 16
        assert inside.stop == full or inside.stop - axis.stop >= 16


def test_a_tumour_longer_than_a_window_is_covered_by_several():
    place = (slice(20, 60), slice(10, 180), slice(30, 60))
    windows = focus_windows(seen_at(place), NO_BOXES, TILING, own)
    assert len(windows) == 3
    assert covered(windows)[place].all()


def test_two_tumours_near_each_other_share_a_window():
    places = (slice(40, 50), slice(40, 50), slice(40, 50)), (slice(60, 64), slice(40, 50), slice(40, 50))
    windows = focus_windows(seen_at(*places), NO_BOXES, TILING, own)
    assert len(windows) == len({(window.start, window.size) for window in windows}) == 1


def test_the_tiling_stays_where_other_windows_would_be_more_work():
    everywhere = [
        (slice(x, x + 4), slice(y, y + 4), slice(z, z + 4))
        for x in range(8, 160, 30)
        for y in range(8, 180, 30)
        for z in range(8, 160, 30)
    ]
    assert focus_windows(seen_at(*everywhere), NO_BOXES, TILING, own) == TILING


def test_nothing_seen_and_no_box_asks_for_no_window():
    assert focus_windows(seen_at(), NO_BOXES, TILING, own) == []


def test_a_box_is_covered_with_its_margin_even_at_the_border():
    box = np.array([[1.0, 100.0, 60.0, 22.0, 180.0, 95.0]], dtype=np.float32)
    windows = focus_windows(seen_at(), box, TILING, own)
    with_margin = (slice(0, 22 + MARGIN), slice(100 - MARGIN, 180 + MARGIN), slice(60 - MARGIN, 95 + MARGIN))
    assert covered(windows)[with_margin].all()


def test_a_lean_run_needs_the_windows_near_a_tumour_and_those_that_have_a_say_in_it():
    # Along the second axis windows begin at 0, 64 and 96, and answer for 0 to 80, 80 to 128 and 128 to 192.
    place = (slice(40, 50), slice(110, 120), slice(40, 50))
    needed = [window.start for window in needed_windows(seen_at(place), NO_BOXES, TILING)]
    assert needed == [(0, 64, 0), (0, 96, 0)], "the last two overlap by 64 voxels, and share the place"
    beside = (slice(40, 50), slice(20, 30), slice(40, 50))
    assert [window.start for window in needed_windows(seen_at(beside), NO_BOXES, TILING)] == [(0, 0, 0)]
    # A box is no closer than the margin to what its neighbours answer for, and nothing was seen in it.
    box = np.array([[40.0, 95.0, 40.0, 50.0, 115.0, 50.0]], dtype=np.float32)
    assert [window.start for window in needed_windows(seen_at(), box, TILING)] == [(0, 64, 0)]
    assert needed_windows(seen_at(), NO_BOXES, TILING) == []


def test_a_window_cut_from_the_levels_lies_where_the_window_lies():
    strides = (2, 4, 8, 16, 32)
    levels = [
        torch.arange(float(np.prod([n // s for n in EXTENT]))).reshape(1, 1, *(n // s for n in EXTENT)) for s in strides
    ]
    window = TILING[-1]
    for part, level, stride in zip(cut(levels, strides, window), levels, strides, strict=True):
        x, y, z = (start // stride for start in window.start)
        assert part.shape[2:] == tuple(side // stride for side in window.size)
        assert part[0, 0, 0, 0, 0] == level[0, 0, x, y, z]
