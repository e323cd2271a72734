"""A temperature fitted on one evaluation and applied to another that shares no patient with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.evaluation import grading
from MTMed3DCore.evaluation.document import read_evaluation
from MTMed3DCore.evaluation.results import CaseResult


def temperature_from(folder: Path, results: Sequence[CaseResult], identity: dict[str, Any]) -> dict[str, Any]:
    """Fit a temperature on the graded cases of a finished evaluation.

    Args:
        folder: of that evaluation.
        results: to which the temperature shall be applied.
        identity: of the model that gave these results.

    Returns:
        ``value``, ``fitted_on`` (its folder), ``cases``, and the log loss of those cases ``before`` and ``after``.

    Raises:
        WrongUse: ``temperature-patients`` (a patient in both), ``temperature-model`` (fitted on another model).
        InputRefused: no finished evaluation, or not both grades in it.
    """
    other = read_evaluation(folder)
    theirs, ours = other.source.get("model"), identity.get("model")
    if theirs and ours and theirs["sha256"] != ours["sha256"]:
        text = f"{folder} evaluates the model {theirs['name']} with other weights."
        raise WrongUse("temperature-model", text, "Fit the temperature on an evaluation of the same model.")
    shared = {r.patient for r in other.results} & {r.patient for r in results}
    if shared:
        text = f"{folder} and this evaluation share {len(shared)} patients, {min(shared)} among them."
        remedy = "Fit the temperature on other patients: on those it was fitted on it flatters."
        raise WrongUse("temperature-patients", text, remedy)
    graded = [r for r in other.results if r.grade is not None and r.probability_hgg is not None]
    probabilities = np.array([r.probability_hgg for r in graded], dtype=np.float64)
    high = np.array([r.grade == "HGG" for r in graded], dtype=bool)
    value = grading.fit_temperature(probabilities.tolist(), high.tolist())
    return {
        "value": value,
        "fitted_on": str(folder),
        "cases": len(graded),
        "log_loss_before": grading.log_loss(probabilities, high),
        "log_loss_after": grading.log_loss(grading.scale(probabilities, value), high),
    }


def with_temperature(results: Sequence[CaseResult], value: float) -> list[CaseResult]:
    """The results with scaled probabilities beside the model's own."""
    scaled = []
    for result in results:
        p = result.probability_hgg
        probability = None if p is None else float(grading.scale(np.array([p]), value)[0])
        scaled.append(replace(result, scaled_probability_hgg=probability))
    return scaled
