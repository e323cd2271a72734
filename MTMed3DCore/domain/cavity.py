"""Spaces of fluid at the surface of the brain that no sulcus explains: a resection cavity, or a cyst.

The two cannot be told from each other here, nor from an arachnoid cyst or a widened fissure; a notice says what was
seen and what it may be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.domain.check import DomainCheck
from MTMed3DCore.domain.sample import FLAIR, T1, T1CE, T2, Mask, Sample

DARK_T1, DARK_T1CE, BRIGHT_T2, DARK_FLAIR = 0.12, 0.17, 0.88, 0.15
"""Ranks in the brain below, and for T2 above, which all four sequences must lie for fluid."""
RADIUS_MM = 6.0
"""Fluid that holds no ball of this radius is a sulcus."""
NEAR_MM = 6.0
"""How close a space comes to the surface or to the tumour to count as reaching it."""
LARGEST_ML = 12.0
LARGEST_AT_TUMOUR_ML = 4.0


def cavity_checks(sample: Sample) -> list[DomainCheck]:
    """The largest space of fluid that reaches the surface, and the largest of those that adjoin the tumour."""
    everywhere, at_tumour = cavity_volumes(sample)
    meaning = (
        "A resection cavity or a cyst: the model was made for tumours before an operation, so check the history before "
        "regions and grade are used."
    )
    quantity = "the largest space of fluid at the brain's surface"
    checks = [DomainCheck("cavity", quantity, everywhere, None, LARGEST_ML, "ml", meaning)]
    if sample.tumour.any():
        quantity = "the largest space of fluid between the tumour and the brain's surface"
        checks.append(DomainCheck("cavity-at-tumour", quantity, at_tumour, None, LARGEST_AT_TUMOUR_ML, "ml", meaning))
    return checks


def cavity_volumes(sample: Sample) -> tuple[float, float]:
    """Millilitres of the largest space at the surface, and of the largest there that adjoins the tumour."""
    spaces, count = _spaces(_fluid(sample), sample.spacing)
    if not count:
        return 0.0, 0.0
    depth = ndimage.distance_transform_edt(np.pad(sample.brain, 1), sampling=sample.spacing)[1:-1, 1:-1, 1:-1]
    at_surface = np.unique(spaces[(depth < NEAR_MM) & sample.brain])
    sizes = np.bincount(spaces.ravel(), minlength=count + 1) * sample.spacing**3 / 1000
    sizes[0] = 0.0
    largest = float(sizes[at_surface].max(initial=0.0))
    if not sample.tumour.any():
        return largest, 0.0
    near = ndimage.distance_transform_edt(~sample.tumour, sampling=sample.spacing) < NEAR_MM
    adjoining = np.intersect1d(at_surface, np.unique(spaces[near]))
    return largest, float(sizes[adjoining].max(initial=0.0))


def _fluid(sample: Sample) -> Mask:
    ranks = sample.ranks
    fluid = np.zeros(sample.brain.shape, dtype=bool)
    fluid[sample.brain] = (
        (ranks[T1] < DARK_T1) & (ranks[T1CE] < DARK_T1CE) & (ranks[T2] > BRIGHT_T2) & (ranks[FLAIR] < DARK_FLAIR)
    )
    return fluid


def _spaces(fluid: Mask, spacing: float) -> tuple[npt.NDArray[Any], int]:
    """Parts of the fluid wide enough for a ball of `RADIUS_MM`, numbered from 1, and how many they are."""
    # Distances to the face between two voxels, not to the far one's middle.
    inside = ndimage.distance_transform_edt(np.pad(fluid, 1), sampling=spacing)[1:-1, 1:-1, 1:-1] - spacing / 2
    middles = inside >= RADIUS_MM - spacing / 2
    if not middles.any():
        return np.zeros(fluid.shape, dtype=np.int32), 0
    wide = ndimage.distance_transform_edt(~middles, sampling=spacing) < RADIUS_MM
    numbers, count = ndimage.label(wide)
    return numbers, int(count)
