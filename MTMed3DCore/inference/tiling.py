"""Windows that cover a volume, and how large they had best be.

The network's maps have strides up to 32, so windows start at multiples of 32 in a volume padded to multiples of 32:
then every level of every window falls on one common lattice, and stitching is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

import torch
from monai.data.utils import compute_importance_map

from MTMed3DCore.inference.settings import GRANULE

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Window:
    """A window in the padded working volume.

    Args:
        start: first voxel.
        size: sides in voxels.
        own: lower and upper bound (half-open) of the part of the volume that this window answers for; the parts of all
            windows tile the padded volume.
    """

    start: Triple
    size: Triple
    own: tuple[Triple, Triple]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index of the window's voxels."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.size, strict=True))
        return x, y, z


@dataclass(frozen=True)
class WindowCost:
    """What a window takes on a machine, linear in its voxels.

    Args:
        fixed_s: seconds of any window.
        voxel_s: seconds of each of its voxels.
    """

    fixed_s: float
    voxel_s: float

    def seconds(self, sizes: Iterable[Triple]) -> float:
        """Of windows of these sizes."""
        return sum(self.fixed_s + prod(size) * self.voxel_s for size in sizes)


def plan_windows(extent: Triple, window: int | Triple) -> tuple[Triple, list[Window]]:
    """Windows that cover a volume, all of one size.

    Neighbours overlap by 32 voxels (by more at the far end); an axis that fits into one window gets one of its own
    padded length.

    Args:
        extent: sides of the working volume.
        window: sides of the windows, or the one side of cubic ones; multiples of 32, at least 64.

    Returns:
        The sides of the padded volume, multiples of 32, and the windows.
    """
    largest = (window, window, window) if isinstance(window, int) else window
    padded = padded_extent(extent)
    x, y, z = (min(side, full) for full, side in zip(padded, largest, strict=True))
    starts = [
        [*range(0, full - side, max(GRANULE, side - GRANULE)), full - side]
        for full, side in zip(padded, (x, y, z), strict=True)
    ]
    return padded, windows_at(starts, (x, y, z), padded)


def windows_at(starts: Sequence[Sequence[int]], size: Triple, padded: Triple) -> list[Window]:
    """Windows of one size that begin at all combinations of places along the three axes.

    Each answers for what is no nearer to the middle of a neighbour.

    Args:
        starts: along each axis, ascending.
        size: sides of the windows.
        padded: sides of the volume that they cover.
    """
    axes: list[list[tuple[int, int, int]]] = []
    for along, side, full in zip(starts, size, padded, strict=True):
        cuts = [0, *((a + side + b) // 2 for a, b in pairwise(along)), full]
        axes.append([(a, low, high) for a, (low, high) in zip(along, pairwise(cuts), strict=True)])
    windows = []
    for x, y, z in product(*axes):
        start, low3, high3 = zip(x, y, z, strict=True)
        windows.append(Window(start, size, (low3, high3)))
    return windows


def window_weight(size: Triple) -> torch.Tensor:
    """What each voxel of a window weighs in the mean of windows (X, Y, Z): a Gaussian, an eighth of a side wide."""
    # Made on the host: MONAI asks for its smallest value.
    return compute_importance_map(size, mode="gaussian", sigma_scale=0.125, device="cpu").float()


def padded_extent(extent: Triple) -> Triple:
    """Sides of a volume padded to multiples of 32."""
    if max(extent) <= GRANULE:  # the deepest level's norms need more than one voxel
        extent = (2 * GRANULE, extent[1], extent[2])
    x, y, z = (-(-side // GRANULE) * GRANULE for side in extent)
    return x, y, z


def fitting_sides(extent: Triple, window: int, most_voxels: float) -> list[Triple]:
    """Sides of windows that may cover a volume, the model's own first.

    No side is shorter than the model's own (or than the volume): the norms of the network are to see at least as much
    as in training.

    Args:
        extent: sides of the volume.
        window: the model's own side.
        most_voxels: that memory suffices for; the model's own window is taken however little there is.
    """
    first, second, third = (range(min(window, full), full + 1, GRANULE) for full in padded_extent(extent))
    own = (first[0], second[0], third[0])
    others = ((x, y, z) for x in first for y in second for z in third if x * y * z <= most_voxels)
    return [own, *(sides for sides in others if sides != own)]


def quickest_sides(extent: Triple, candidates: Sequence[Triple], cost: WindowCost) -> Triple:
    """Those of some sides with which windows cover a volume in the least time."""

    def rank(sides: Triple) -> tuple[float, int]:
        return cost.seconds(each.size for each in plan_windows(extent, sides)[1]), prod(sides)

    return min(candidates, key=rank)
