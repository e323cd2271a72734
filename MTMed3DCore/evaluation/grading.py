"""How well the grade is told: discrimination at a threshold and over all, calibration, and temperature scaling.

High grade is the positive class. A case whose grade nobody knows takes no part. A case that the model left without a
grade, because it found no tumour there, is charged: it counts as wrong, and as a probability of one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import rankdata

from MTMed3DCore.errors import InputRefused

THRESHOLD = 0.5
UNGRADED = 0.5
BINS = 10
FIGURES = ("auc", "balanced_accuracy", "accuracy", "sensitivity", "specificity", "brier", "calibration_error")
"""In the order of the tables; of the last two, less is better."""
_EPSILON = 1e-6
_LARGEST_LOG_TEMPERATURE = 3.0
FloatArray = npt.NDArray[np.floating[Any]]


def grading_figures(probabilities: FloatArray, high: npt.NDArray[np.bool_]) -> dict[str, float]:
    """`FIGURES` over cases; NaN for what they do not tell, as all but accuracy and calibration with one grade only.

    Args:
        probabilities: of high grade, (N,); NaN where the model gave none.
        high: whether each case is of high grade, (N,).
    """
    if len(high) == 0:
        return dict.fromkeys(FIGURES, np.nan)
    given = np.isfinite(probabilities)
    p = np.where(given, probabilities, UNGRADED)
    right = given & ((p >= THRESHOLD) == high)
    positives, negatives = int(high.sum()), int((~high).sum())
    sensitivity = float(right[high].mean()) if positives else np.nan
    specificity = float(right[~high].mean()) if negatives else np.nan
    bins = reliability(p, high)
    return {
        "auc": _auc(p, high, positives, negatives),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": float(right.mean()),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "brier": float(np.mean((p - high) ** 2)),
        "calibration_error": sum(b.count * abs(b.probability - b.share) for b in bins) / len(high),
    }


def _auc(p: FloatArray, high: npt.NDArray[np.bool_], positives: int, negatives: int) -> float:
    """Area under the ROC curve as the Mann-Whitney statistic; ties count half."""
    if not positives or not negatives:
        return np.nan
    ranks = rankdata(p)
    return float((ranks[high].sum() - positives * (positives + 1) / 2) / (positives * negatives))


@dataclass(frozen=True)
class Bin:
    """Cases of similar probability.

    Args:
        probability: their mean probability of high grade.
        share: of them that are of high grade.
        count: how many they are.
    """

    probability: float
    share: float
    count: int


def reliability(probabilities: FloatArray, high: npt.NDArray[np.bool_], bins: int = BINS) -> list[Bin]:
    """The points of the reliability curve, over bins of equal width; empty bins are left out."""
    number = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    members = [number == each for each in np.unique(number)]
    return [Bin(float(probabilities[m].mean()), float(high[m].mean()), int(m.sum())) for m in members]


def log_loss(probabilities: FloatArray, high: npt.NDArray[np.bool_]) -> float:
    """Mean negative log likelihood; probabilities are kept a millionth off 0 and 1."""
    p = np.clip(probabilities, _EPSILON, 1 - _EPSILON)
    return float(-np.mean(np.where(high, np.log(p), np.log1p(-p))))


def scale(probabilities: FloatArray, temperature: float) -> FloatArray:
    """Probabilities with their logits divided by a temperature; NaN stays."""
    scaled: FloatArray = expit(logit(np.clip(probabilities, _EPSILON, 1 - _EPSILON)) / temperature)
    return scaled


def fit_temperature(probabilities: Sequence[float], high: Sequence[bool]) -> float:
    """The temperature of least log loss (Guo et al., On Calibration of Modern Neural Networks, ICML 2017).

    It lies within 1/20 and 20; where one threshold parts the grades without an error the lower end is the best.

    Args:
        probabilities: given by the model to validation cases, (N,).
        high: their grades.

    Raises:
        InputRefused: ``temperature-cases``, where not both grades are there.
    """
    p, truth = np.asarray(probabilities, dtype=np.float64), np.asarray(high, dtype=bool)
    if not truth.any() or truth.all():
        text = f"A temperature needs graded cases of both grades; {truth.sum()} HGG and {(~truth).sum()} LGG are given."
        raise InputRefused("temperature-cases", text, "Fit it on an evaluation that holds both.")
    limits = (-_LARGEST_LOG_TEMPERATURE, _LARGEST_LOG_TEMPERATURE)
    best = minimize_scalar(lambda t: log_loss(scale(p, float(np.exp(t))), truth), bounds=limits, method="bounded")
    return float(np.exp(best.x))
