"""A temperature fitted on patients that neither training nor the evaluation it is applied to has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.evaluation import grading
from MTMed3DCore.evaluation.document import Evaluation, read_evaluation
from MTMed3DCore.evaluation.results import CaseResult


def temperature_from(
    folder: Path, results: Sequence[CaseResult], seen: Callable[[str], bool] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Fit a temperature on the graded cases of a finished evaluation.

    Args:
        folder: of that evaluation.
        results: to which the temperature shall be applied.
        seen: whether the model was trained on a patient; None where the model is not at hand.

    Returns:
        ``value``, ``fitted_on`` (its folder), ``cases``, and the log loss of those cases ``before`` and ``after``; and
        what a reader must know of it.

    Raises:
        WrongUse: ``temperature-patients`` (a patient in both), ``temperature-model`` (results of more than one model),
            ``temperature-trained`` (fitted on cases of the training).
        InputRefused: no finished evaluation, or not both grades in it.
    """
    other = read_evaluation(folder)
    models = {r.model["sha256"] for r in (*other.results, *results) if r.model}
    if len(models) > 1:
        text = f"{folder} and this evaluation hold results of {len(models)} models with different weights."
        raise WrongUse("temperature-model", text, "Fit the temperature on an evaluation of the same model.")
    shared = {r.patient for r in other.results} & {r.patient for r in results}
    if shared:
        text = f"{folder} and this evaluation share {len(shared)} patients, {min(shared)} among them."
        remedy = "Fit the temperature on other patients: on those it was fitted on it flatters."
        raise WrongUse("temperature-patients", text, remedy)
    graded = [r for r in other.results if r.grade is not None and r.probability_hgg is not None]
    known = _trained_on(other, graded, seen)
    if known:
        text = f"The model was trained on {known} of the cases of {folder}, and is surer of those than of others."
        remedy = "Fit the temperature on cases that it has not seen: evaluate its validation fold with --fold."
        raise WrongUse("temperature-trained", text, remedy)
    probabilities = np.array([r.probability_hgg for r in graded], dtype=np.float64)
    high = np.array([r.grade == "HGG" for r in graded], dtype=bool)
    value = grading.fit_temperature(probabilities.tolist(), high.tolist())
    doubt = "Nothing tells whether the model was trained on the cases that the temperature was fitted on."
    document = {
        "value": value,
        "fitted_on": str(folder),
        "cases": len(graded),
        "log_loss_before": grading.log_loss(probabilities, high),
        "log_loss_after": grading.log_loss(grading.scale(probabilities, value), high),
    }
    return document, [doubt] if known is None else []


def _trained_on(evaluation: Evaluation, graded: Sequence[CaseResult], seen: Callable[[str], bool] | None) -> int | None:
    """How many cases of an evaluation its model was trained on; None where neither model nor evaluation tells."""
    if seen is not None:
        return sum(seen(r.patient) for r in graded)
    told = evaluation.data.get("trained_on")
    return told if isinstance(told, int) else None


def with_temperature(results: Sequence[CaseResult], value: float) -> list[CaseResult]:
    """The results with scaled probabilities beside the model's own."""
    scaled = []
    for result in results:
        p = result.probability_hgg
        probability = None if p is None else float(grading.scale(np.array([p]), value)[0])
        scaled.append(replace(result, scaled_probability_hgg=probability))
    return scaled
