"""How far a trained network's scores can be taken at their word, measured on synthetic studies of the held-out family.

What is fitted goes into the bundle's metadata as numbers; `MTMed3DCore.bundles.calibration` says under which keys, and
the analysis applies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import logit

from MTMed3DCore.bundles.calibration import LogitLine
from MTMed3DCore.domain.uncertainty import mean_entropy
from MTMed3DCore.evaluation.grading import fit_temperature, log_loss, reliability, scale
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.training.calibration import FAMILY, SCORE_THRESHOLDS, Outcome, judged_lesions, run_over

FIRST_SEED = 30_000_000
"""Apart from the seeds of training, from those that thresholds are chosen on, and from those of the model card."""
STUDIES = 40
FEWEST_LESIONS = 12
"""Lesions of one origin below which those of both are fitted together."""
RIDGE = 0.05
"""Weight of the slope's squared distance from 1, in lesions; keeps a handful that are all right from being certain."""
MARGIN = 1.25
"""By how much a study may be less certain than all but a few of the calibration before it is called unsure."""
_EPSILON = 1e-6
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Map = Callable[[Floats], Floats]


def calibration_outcomes(
    network: TaskNetwork, settings: InferenceSettings, device: str = "cpu", count: int = STUDIES
) -> list[Outcome]:
    """Results on studies that neither training nor any threshold has seen; network in evaluation mode on `device`."""
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    return [outcome for _, outcome in run_over(network, unsifted(settings), seeds, device)]


def unsifted(settings: InferenceSettings) -> InferenceSettings:
    """The settings without what leaves uncertain lesions out.

    What a score is worth is learnt from those below the thresholds as well: the few that are left above them may all be
    right, and would say nothing.
    """
    return replace(settings, score_threshold=min(SCORE_THRESHOLDS), bare_box_score=0.0, minimum_lone_ml=0.0)


def fit_calibration(outcomes: Sequence[Outcome], settings: InferenceSettings) -> dict[str, Any]:
    """Everything that the bundle's metadata shall say of the network's scores.

    Args:
        outcomes: of `calibration_outcomes`.
        settings: with which the lesions are found; those that their thresholds leave out count as well.

    Returns:
        ``lesion_calibration``, ``grade_calibration`` and ``entropy_limit``, each only where the outcomes tell it: a
        calibration needs both hits and misses, or both grades, and the limit needs tumour.
    """
    said = {"studies": len(outcomes), "data": f"synthetic studies of the family {FAMILY}"}
    result: dict[str, Any] = {}
    lesions = _lesion_calibration(outcomes, unsifted(settings))
    if lesions is not None:
        result["lesion_calibration"] = {"method": "Platt scaling", **said, **lesions}
    grade = _grade_calibration(outcomes)
    if grade is not None:
        result["grade_calibration"] = {"method": "temperature scaling", **said, **grade}
    entropies = [mean_entropy(outcome.raw.regions, settings.whole_tumour_threshold) for outcome in outcomes]
    known = [value for value in entropies if value is not None]
    if known:
        result["entropy_limit"] = float(min(1.0, MARGIN * np.percentile(known, 99)))
    return result


def fit_line(scores: Floats, hits: Bools) -> tuple[float, float]:
    """Slope, not negative, and intercept of the logit of least log loss.

    Platt, Probabilistic outputs for support vector machines, 1999: the targets are a little inside 0 and 1, so that a
    few lesions without an error make no certainty.
    """
    x = logit(np.clip(scores, _EPSILON, 1 - _EPSILON))
    positive, negative = int(hits.sum()), int((~hits).sum())
    target = np.where(hits, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(line: Floats) -> float:
        value = line[0] * x + line[1]
        return float(np.logaddexp(0, value).sum() - target @ value + RIDGE * (line[0] - 1) ** 2)

    best = minimize(loss, np.array([1.0, 0.0]), bounds=[(0.0, None), (None, None)], method="L-BFGS-B")
    return float(best.x[0]), float(best.x[1])


def modest_temperature(probabilities: Floats, high: Bools) -> float:
    """The temperature of least log loss, but at least 1.

    Synthetic tumours are easier to grade than patients' are: they may make a network less sure of itself, not surer.
    """
    return max(1.0, fit_temperature(probabilities.tolist(), high.tolist()))


def _lesion_calibration(outcomes: Sequence[Outcome], settings: InferenceSettings) -> dict[str, Any] | None:
    """A line for each origin and the error on lesions that the lines were not fitted to; None without both kinds."""
    judged_by = [judged_lesions(settings, outcome) for outcome in outcomes]
    judged = [pair for pairs in judged_by for pair in pairs]
    scores = np.array([lesion.score for lesion, _ in judged], dtype=np.float64)
    hits = np.array([hit for _, hit in judged], dtype=bool)
    if not hits.any() or hits.all():
        return None
    even = np.array([number % 2 == 0 for number, pairs in enumerate(judged_by) for _ in pairs])
    result: dict[str, Any] = {}
    for origin in ("detection", "region"):
        own = np.array([lesion.origin == origin for lesion, _ in judged])
        few = own.sum() < FEWEST_LESIONS or not hits[own].any() or hits[own].all()
        slope, intercept = fit_line(scores, hits) if few else fit_line(scores[own], hits[own])
        result[origin] = {"slope": slope, "intercept": intercept, "lesions": int(own.sum()), "pooled": bool(few)}
    return {**result, **_held_out_error(scores, hits, even, _fit_on_line)}


def _grade_calibration(outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """The temperature and the error on studies that it was not fitted to; None without both grades."""
    graded = [o for o in outcomes if o.grade is not None and o.raw.hgg_probability is not None]
    probabilities = np.array([o.raw.hgg_probability for o in graded], dtype=np.float64)
    high = np.array([o.grade == 1 for o in graded], dtype=bool)
    if not high.any() or high.all():
        return None
    even = np.arange(len(graded)) % 2 == 0
    temperature = modest_temperature(probabilities, high)
    error = _held_out_error(probabilities, high, even, _fit_temperature)
    return {"studies": len(graded), "temperature": temperature, **error}


def _held_out_error(scores: Floats, hits: Bools, even: Bools, fit: Callable[[Floats, Bools], Map]) -> dict[str, float]:
    """Expected calibration error and log loss, of each half of the studies by what the other half was fitted to.

    Empty where a half has cases of one kind only.
    """
    if any(not hits[half].any() or hits[half].all() for half in (even, ~even)):
        return {}
    fitted = np.empty(len(scores))
    for half in (even, ~even):
        fitted[half] = fit(scores[~half], hits[~half])(scores[half])
    return {
        "calibration_error": _error(fitted, hits),
        "calibration_error_before": _error(scores, hits),
        "log_loss": log_loss(fitted, hits),
        "log_loss_before": log_loss(scores, hits),
    }


def _error(probabilities: Floats, hits: Bools) -> float:
    bins = reliability(probabilities, hits)
    return float(sum(each.count * abs(each.probability - each.share) for each in bins) / len(hits))


def _fit_on_line(scores: Floats, hits: Bools) -> Map:
    line = LogitLine(*fit_line(scores, hits))
    return lambda others: np.array([line(score) for score in others])


def _fit_temperature(probabilities: Floats, high: Bools) -> Map:
    temperature = modest_temperature(probabilities, high)
    return lambda others: np.asarray(scale(others, temperature), dtype=np.float64)
