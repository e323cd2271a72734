"""Confidence intervals by resampling patients: the studies of one patient are no independent observations.

The percentile bootstrap of Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]
Figures = Mapping[str, float]
FEWEST_PATIENTS = 2
"""Below that there is nothing to resample, and no interval."""
FEW_PATIENTS = 20
"""Below that a report warns of its own intervals."""
FEWEST_DEFINED = 0.5
"""Share of the resamples in which a figure must be defined to get an interval."""


def notes_on(patients: Collection[str]) -> list[str]:
    """What a reader must know of intervals over these patients."""
    count = len(set(patients))
    return [f"Only {count} patients: bootstrap intervals over so few are too narrow."] if count < FEW_PATIENTS else []


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Args:
        value: over the cases as they are; NaN where they do not tell.
        low, high: ends of the interval; NaN without one.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Args:
        resamples: number of resamples; 0 for no intervals.
        seed: the same seed gives the same intervals.
        confidence: share of the resamples inside an interval.
    """

    resamples: int = 1000
    seed: int = 0
    confidence: float = 0.95

    def estimate(self, patients: Sequence[str], figures: Callable[[Indices], Figures]) -> dict[str, Estimate]:
        """Figures with intervals.

        Args:
            patients: of each case.
            figures: from indices of cases, some perhaps several times, to figures by name.
        """
        values = figures(np.arange(len(patients)))
        drawn = [figures(indices) for indices in self._draws(patients)]
        tails = (50.0 * (1 - self.confidence), 50.0 * (1 + self.confidence))
        estimates = {}
        for name, value in values.items():
            sample = np.array([each[name] for each in drawn], dtype=np.float64)
            sample = sample[np.isfinite(sample)]
            enough = np.isfinite(value) and sample.size >= max(1, FEWEST_DEFINED * len(drawn))
            low, high = np.percentile(sample, tails) if enough else (np.nan, np.nan)
            estimates[name] = Estimate(float(value), float(low), float(high))
        return estimates

    def _draws(self, patients: Sequence[str]) -> list[Indices]:
        names = sorted(set(patients))
        if len(names) < FEWEST_PATIENTS:
            return []
        cases = [np.flatnonzero(np.asarray(patients) == name) for name in names]
        random = np.random.default_rng(self.seed)
        chosen = random.integers(len(names), size=(self.resamples, len(names)))
        return [np.concatenate([cases[patient] for patient in row]) for row in chosen]
