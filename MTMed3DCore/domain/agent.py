"""Whether contrast agent was given: something must be brighter on T1ce than its T1 explains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from MTMed3DCore.domain.check import DomainCheck
from MTMed3DCore.domain.sample import T1, T1CE, Sample, smooth_inside

BINS = 40
SHADING_MM = 10.0
"""Standard deviation of the Gaussian whose mean is taken for the coils' shading."""
PERCENTILE = 99.7
"""Vessels and choroid plexus alone make up more than the remaining share of a brain."""
LEAST_RISE = 0.28


def agent_check(sample: Sample) -> DomainCheck:
    """How far the brightest few tenths of a percent rise above what T1 explains.

    The T1ce that a voxel's T1 lets expect is the median of all voxels with such a T1; shading is taken off. The rise
    is in units of the T1ce's own spread, from the 10th to the 90th percentile, so that no unit matters.
    """
    rise = agent_rise(sample)
    spread = _spread(sample.image[T1CE][sample.brain])
    values = rise[sample.brain] / spread
    high = float(np.percentile(values, PERCENTILE) - np.median(values))
    return DomainCheck(
        "contrast-missing", "the rise of the brightest voxels from T1 to T1ce", high, LEAST_RISE, None, "",
        "Perhaps no contrast agent was given, or a T1 was taken for the T1ce: enhancing tumour and grade cannot be "
        "told then. Check the series.",
    )  # fmt: skip


def agent_rise(sample: Sample) -> npt.NDArray[np.float32]:
    """T1ce less what T1 explains and less shading, (X, Y, Z), zero outside the brain."""
    t1, t1ce = sample.image[T1][sample.brain], sample.image[T1CE][sample.brain]
    edges = np.quantile(t1, np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(edges, t1, side="right")
    order = np.argsort(bins, kind="stable")
    groups = np.split(t1ce[order], np.searchsorted(bins[order], np.arange(1, BINS)))
    medians = np.array([np.median(group) if group.size else 0.0 for group in groups])
    rise = np.zeros(sample.brain.shape, dtype=np.float32)
    rise[sample.brain] = t1ce - medians[bins]
    shading = smooth_inside(rise, sample.brain, SHADING_MM / sample.spacing)
    return np.where(sample.brain, rise - shading, np.float32(0))


def _spread(values: npt.NDArray[np.float32]) -> float:
    low, high = np.percentile(values, (10, 90))
    return max(float(high - low), 1e-6)
