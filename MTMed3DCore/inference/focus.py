"""Where a lean or a quick analysis looks closely.

A glance, one pass over the volume at half the resolution, says where tumour may be. Only there, and where a box was
found, anything is segmented. A lean analysis keeps the windows of the fixed tiling that hold such a place. A quick one
lays its windows round what was seen, so that fewer of them do and the tumour lies in their middle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch.nn.functional import avg_pool3d, pad

from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.settings import GRANULE
from MTMed3DCore.inference.tiling import Triple, Window, padded_extent, plan_windows, window_weight
from MTMed3DCore.networks.registry import TASKS

FACTOR = 2
UNLIKELY = 0.1
"""Probability of any region from which the glance keeps a voxel; low, because it is no more than a glance."""
MARGIN = 8
"""Voxels of the working volume around what was seen that are kept as well; windows reach further."""
LEAST_SHARE = 0.02
"""Of the mean in a voxel, from which a window has a say in it."""
LEAST_WINDOWS = 4
"""With fewer windows over the whole volume the glance costs more than it can save."""

Sides = Callable[[Triple], Triple]
"""The sides of the windows that are to cover a region of an extent."""


def may_focus(network: Any, tiling: Sequence[Window]) -> bool:
    """Whether a network can be used so, and whether it is worth while for the windows that cover a volume."""
    segments = "segmentation" in getattr(network, "tasks", TASKS)
    return segments and getattr(network, "level_strides", None) is not None and len(tiling) >= LEAST_WINDOWS


def glance(network: Any, volume: torch.Tensor, brain: VoxelBox, device: torch.device) -> npt.NDArray[np.bool_]:
    """Where tumour may be, on the lattice of every second voxel.

    Args:
        network: a `TaskNetwork` that segments.
        volume: (1, C, X, Y, Z), sides multiples of 32.
        brain: all that is looked at.
        device: the network's.

    Returns:
        (X / 2, Y / 2, Z / 2).
    """
    lower = [int(low) // FACTOR for low in brain.lower]
    upper = [-(-int(high) // FACTOR) for high in brain.upper]
    place = tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))
    x, y, z = (slice(low * FACTOR, high * FACTOR) for low, high in zip(lower, upper, strict=True))
    small = avg_pool3d(volume[..., x, y, z], FACTOR)
    shape = (small.shape[2], small.shape[3], small.shape[4])
    missing = [full - side for full, side in zip(padded_extent(shape), shape, strict=True)]
    small = pad(small, (0, missing[2], 0, missing[1], 0, missing[0])).to(device)
    logits = network.segment(small, network.encode(small))
    likely = logits[0].float().amax(0) >= torch.logit(torch.tensor(UNLIKELY)).item()
    here = likely.new_zeros([side // FACTOR for side in volume.shape[2:]])
    here[place] = likely[: shape[0], : shape[1], : shape[2]]
    seen: npt.NDArray[np.bool_] = here.cpu().numpy()
    return seen


def needed_windows(
    seen: npt.NDArray[np.bool_], boxes: npt.NDArray[np.float32], tiling: Sequence[Window]
) -> list[Window]:
    """Those windows of a tiling that something seen, or a box, calls for.

    A window is needed if its own part holds something, margin included, or if its share of the mean is at least
    `LEAST_SHARE` in any voxel that was seen: where windows overlap by much, one has its say far outside its own part.

    Args:
        seen: as `glance` gives it.
        boxes: (N, 6), half-open voxel boxes of the working volume.
        tiling: the windows that cover the whole volume.
    """
    places = [
        tuple(slice(a // FACTOR, (a + n) // FACTOR) for a, n in zip(w.start, w.size, strict=True)) for w in tiling
    ]
    weights = [_weight(window.size) for window in tiling]
    total = np.zeros(seen.shape, dtype=np.float32)
    for place, weight in zip(places, weights, strict=True):
        total[place] += weight
    holding = _holding(_widened(seen, boxes), tiling)
    return [
        window
        for window, place, weight in zip(tiling, places, weights, strict=True)
        if window in holding or (seen[place] & (weight >= LEAST_SHARE * total[place])).any()
    ]


def focus_windows(
    seen: npt.NDArray[np.bool_], boxes: npt.NDArray[np.float32], tiling: Sequence[Window], sides: Sides
) -> list[Window]:
    """Windows over what was seen and the boxes, on the lattice of the network's levels.

    Args:
        seen: as `glance` gives it.
        boxes: (N, 6), half-open voxel boxes of the working volume.
        tiling: the windows that cover the whole volume. Those of them that hold anything are the answer where laying
            others would mean no less work.
        sides: of windows over a region; no axis shorter than the tiling's.
    """
    seen = _widened(seen, boxes)
    least = tiling[0].size
    numbered, _ = ndimage.label(seen)
    laid: dict[tuple[Triple, Triple], Window] = {}
    for place in ndimage.find_objects(numbered):
        axes = zip(place, least, seen.shape, strict=True)
        bounds = [_lattice(axis.start * FACTOR, axis.stop * FACTOR, side, n * FACTOR) for axis, side, n in axes]
        first = _triple(low for low, _ in bounds)
        extent = _triple(high - low for low, high in bounds)
        for window in plan_windows(extent, sides(extent))[1]:
            moved = _moved(window, first)
            laid[moved.start, moved.size] = moved
    needed = _holding(seen, tiling)
    if _voxels(needed) <= _voxels(laid.values()):
        return needed
    return list(laid.values())


def cut(levels: Sequence[torch.Tensor], strides: Sequence[int], window: Window) -> list[torch.Tensor]:
    """A window's part of the encoder's levels (B, C, x, y, z) of the whole volume, as views."""
    parts = []
    for level, stride in zip(levels, strides, strict=True):
        x, y, z = (slice(part.start // stride, part.stop // stride) for part in window.slices)
        parts.append(level[..., x, y, z])
    return parts


def _widened(seen: npt.NDArray[np.bool_], boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """What was seen and the boxes, with the margin."""
    widened: npt.NDArray[np.bool_] = ndimage.maximum_filter(seen, 2 * (MARGIN // FACTOR) + 1)
    for box in boxes:
        lower = np.maximum(np.floor(box[:3] - MARGIN) // FACTOR, 0).astype(int)
        upper = (np.ceil(box[3:] + MARGIN) // FACTOR).astype(int) + 1
        widened[tuple(slice(low, high) for low, high in zip(lower, upper, strict=True))] = True
    return widened


@lru_cache(maxsize=8)
def _weight(size: Triple) -> npt.NDArray[np.float32]:
    """Of a window's voxels in the mean, on the lattice of every second voxel."""
    x, y, z = (side // FACTOR for side in size)
    weight: npt.NDArray[np.float32] = window_weight((x, y, z)).numpy()
    return weight


def _holding(seen: npt.NDArray[np.bool_], tiling: Sequence[Window]) -> list[Window]:
    return [window for window in tiling if seen[_half(window)].any()]


def _lattice(low: int, high: int, least: int, full: int) -> tuple[int, int]:
    """The range of one axis widened to multiples of 32, and to a least length with its middle kept in the middle."""
    first, last = low // GRANULE * GRANULE, -(-high // GRANULE) * GRANULE
    if last - first >= least:
        return first, min(last, full)
    first = round(((low + high) / 2 - least / 2) / GRANULE) * GRANULE
    first = min(max(first, 0), full - least)
    return first, first + least


def _moved(window: Window, by: Triple) -> Window:
    lower, upper = (_triple(a + b for a, b in zip(bound, by, strict=True)) for bound in window.own)
    return replace(window, start=_triple(a + b for a, b in zip(window.start, by, strict=True)), own=(lower, upper))


def _half(window: Window) -> tuple[slice, ...]:
    """The part that a window answers for, on the lattice of every second voxel."""
    return tuple(slice(low // FACTOR, -(-high // FACTOR)) for low, high in zip(*window.own, strict=True))


def _voxels(windows: Any) -> int:
    return sum(prod(window.size) for window in windows)


def _triple(values: Any) -> Triple:
    x, y, z = values
    return x, y, z
