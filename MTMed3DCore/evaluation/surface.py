"""How far the surfaces of two masks lie apart: the 95th percentile of the Hausdorff distance (HD95)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from MTMed3DCore.geometry import VoxelBox

Mask = npt.NDArray[np.bool_]
ABSENT_MM = 374.0
"""Charged where one mask is empty and the other is not: about the diagonal of BraTS's 240 x 240 x 155 mm volume, as its
challenges charge it."""
PERCENTILE = 95.0


def crop_to_both(a: Mask, b: Mask) -> tuple[Mask, Mask]:
    """Both masks (X, Y, Z) cut to the smallest box that holds every true voxel of either, which must exist."""
    shape = (a.shape[0], a.shape[1], a.shape[2])
    where = VoxelBox.around(a | b).slices(shape)
    return a[where], b[where]


def hd95_mm(found: Mask, truth: Mask, spacing: Sequence[float] | npt.NDArray[np.floating]) -> float:
    """The larger of the two directed 95th percentiles of the distances between the surfaces.

    A surface is every voxel of a mask with a neighbour (of six) outside it; beyond the volume is outside. Percentiles
    are interpolated linearly.

    Args:
        found, truth: (X, Y, Z) on one grid.
        spacing: of that grid, mm.

    Returns:
        mm; 0 where both masks are empty, `ABSENT_MM` where one of them is.
    """
    if not found.any() or not truth.any():
        return 0.0 if found.any() == truth.any() else ABSENT_MM
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    a, b = (torch.from_numpy(np.pad(each, 1))[None, None] for each in crop_to_both(found, truth))
    sides = [float(side) for side in spacing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI calls its own deprecated argument
        distance = compute_hausdorff_distance(a, b, include_background=True, percentile=PERCENTILE, spacing=sides)
    return float(distance[0, 0])
