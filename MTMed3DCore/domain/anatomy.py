"""Whether the brain has an adult's size and shape, and its tissues the order that T1, T2 and FLAIR give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.domain.check import DomainCheck
from MTMed3DCore.domain.sample import FLAIR, T1, T2, Mask, Sample

BRAIN_ML = (900.0, 2300.0)
LENGTH_TO_WIDTH = (1.06, 1.5)
FILLED = (0.42, 0.7)
"""An ellipsoid whose thin ends do not count fills 0.61 of its box, a brain about as much, a block all of it."""
T1_T2_HIGH = -0.02
FLUID_LOW = 0.02
"""Hardly more than the signs that physics gives: tissues of real scans are ordered less clearly than synthetic ones.
A T2 given as FLAIR measures exactly 0."""
DARKEST = 0.05
"""The share of the brain, darkest on T1, that is taken for fluid."""
_STRAY = 0.2
"""Percent of the brain's voxels at either end of an axis that do not count for its extent."""


def brain_checks(brain: Mask, spacing: float, brain_ml: float) -> list[DomainCheck]:
    """Size and shape.

    Args:
        brain: bool (X, Y, Z), axes nearest to R, A, S.
        spacing: mm a voxel.
        brain_ml: volume of the brain mask as it came in.
    """
    size = DomainCheck(
        "brain-size", "the brain's volume", brain_ml, *BRAIN_ML, "ml",
        "A small child, another part of the body, or a brain mask that failed: look at the mask.",
    )  # fmt: skip
    width, length, height = _extents(brain) * spacing
    meaning = "Another part of the body, a phantom, or a brain mask that failed: look at the mask."
    shape = DomainCheck(
        "brain-shape", "the brain's length over its width", length / width, *LENGTH_TO_WIDTH, "", meaning
    )
    filled = float(brain.sum()) * spacing**3 / (width * length * height)
    fill = DomainCheck("brain-filling", "the share of its box that the brain fills", filled, *FILLED, "", meaning)
    return [size, shape, fill]


def tissue_checks(sample: Sample) -> list[DomainCheck]:
    """Order of the tissues: what is bright on T2 is dark on T1, and fluid is bright on T2 but dark on FLAIR."""
    ranks = sample.ranks
    opposed = _correlation(ranks[T1], ranks[T2])
    fluid = ranks[T1] <= DARKEST
    bright = float(ranks[T2][fluid].mean() - ranks[FLAIR][fluid].mean()) if fluid.any() else 0.0
    meaning = (
        "Tissues are not ordered as in an adult's brain: sequences mixed up or not registered, an infant, another kind "
        "of image or another part of the body. Compare the four sequences by eye."
    )
    return [
        DomainCheck(
            "tissue-contrast", "the rank correlation of T1 and T2 in the brain", opposed, None, T1_T2_HIGH, "", meaning
        ),
        DomainCheck(
            "fluid-contrast", "how much brighter fluid ranks on T2 than on FLAIR", bright, FLUID_LOW, None, "", meaning
        ),
    ]


def _extents(brain: Mask) -> npt.NDArray[Any]:
    """Voxels from one end of the brain to the other, along each axis."""
    places = np.argwhere(brain)
    low, high = np.percentile(places, (_STRAY, 100 - _STRAY), axis=0)
    extents: npt.NDArray[Any] = np.asarray(high - low + 1)
    return extents


def _correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0
