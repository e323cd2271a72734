"""From the results of cases to figures with confidence intervals, for every method beside every other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.evaluation import detection, grading
from MTMed3DCore.evaluation.bootstrap import Bootstrap, Estimate, Indices
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.evaluation.results import (
    ALWAYS_HGG,
    COMPONENTS,
    METHOD_NAMES,
    MODEL,
    REGION_FIGURES,
    SCALED,
    THRESHOLDS,
    CaseResult,
    RegionScore,
)

Document = dict[str, Any]


def summarise(results: Sequence[CaseResult], bootstrap: Bootstrap) -> Document:
    """Every figure of every method.

    Returns:
        ``segmentation``, ``detection`` and ``grading``, each None where no case has the truth or the model does not do
        the task; numbers that are not defined are None. Figures are ``{value, low, high}``.
    """
    return {
        "segmentation": segmentation_summary(results, bootstrap),
        "detection": detection_summary(results, bootstrap),
        "grading": grading_summary(results, bootstrap),
    }


def cases_of(results: Sequence[CaseResult], task: str, method: str) -> list[CaseResult]:
    """The cases over which the figures of a method are taken.

    Args:
        results: of the evaluation.
        task: ``segmentation`` or ``detection``.
        method: of `METHOD_NAMES`.
    """
    if task == "segmentation":
        return [r for r in results if method in r.methods and r.methods[method].regions is not None]
    return [r for r in results if r.truth_boxes is not None and r.methods.keys() >= {MODEL, method}]


def row_name(results: Sequence[CaseResult], task: str, method: str) -> str:
    """A method's name in tables and figures, with its cases where they are not all those of the model."""
    own, every = (len(cases_of(results, task, each)) for each in (method, MODEL))
    return METHOD_NAMES[method] if own == every else f"{METHOD_NAMES[method]} ({own} of {every} cases)"


def segmentation_summary(results: Sequence[CaseResult], bootstrap: Bootstrap) -> Document | None:
    """Of each method and region: the mean of each of `REGION_FIGURES` with interval, quartiles, and lesion counts."""
    methods = {}
    for method in (MODEL, THRESHOLDS):
        chosen = cases_of(results, "segmentation", method)
        if chosen:
            methods[method] = {region: _region(chosen, method, region, bootstrap) for region in EVALUATED}
    cases = len(cases_of(results, "segmentation", MODEL))
    return {"cases": cases, "methods": methods} if MODEL in methods else None


def segmentation_difference(results: Sequence[CaseResult], bootstrap: Bootstrap) -> Document | None:
    """Of each region: the model's means less those of the thresholds, over the cases of both; None without any."""
    shared = cases_of(results, "segmentation", THRESHOLDS)
    patients = [r.patient for r in shared]

    def of(region: str) -> Document:
        own, other = (_columns(_scores(shared, method, region)) for method in (MODEL, THRESHOLDS))
        estimates = bootstrap.estimate(patients, _means({name: own[name] - other[name] for name in own}))
        return {name: _plain(estimate) for name, estimate in estimates.items()}

    return {region: of(region) for region in EVALUATED} if shared else None


def _scores(results: Sequence[CaseResult], method: str, region: str) -> list[RegionScore]:
    return [(r.methods[method].regions or {})[region] for r in results]


def _columns(scores: Sequence[RegionScore]) -> dict[str, npt.NDArray[np.floating]]:
    return {name: np.array([getattr(score, name) for score in scores], dtype=np.float64) for name in REGION_FIGURES}


def _means(columns: Mapping[str, npt.NDArray[np.floating]]) -> Callable[[Indices], dict[str, float]]:
    return lambda indices: {name: float(column[indices].mean()) for name, column in columns.items()}


def _region(results: Sequence[CaseResult], method: str, region: str, bootstrap: Bootstrap) -> Document:
    scores = _scores(results, method, region)
    columns = _columns(scores)
    estimates = bootstrap.estimate([r.patient for r in results], _means(columns))
    quartiles = {name: np.percentile(column, (25, 50, 75)).tolist() for name, column in columns.items()}
    counts = {name: sum(getattr(score, name) for score in scores) for name in ("lesions", "missed", "false")}
    figures = {name: _plain(estimate) | {"quartiles": quartiles[name]} for name, estimate in estimates.items()}
    return {**figures, **counts}


def detection_summary(results: Sequence[CaseResult], bootstrap: Bootstrap) -> Document | None:
    """Of each method with boxes: `detection.FIGURES` with intervals, and its FROC curve.

    Of every baseline also ``difference``: the model's figures minus its own, both on its cases and on the same
    resamples. An interval off zero tells that the model does more, or less, than for example the boxes of its own
    segmentation.
    """
    methods = {}
    chosen = cases_of(results, "detection", MODEL)
    for method in (MODEL, COMPONENTS, THRESHOLDS):
        measured = cases_of(results, "detection", method)
        if not measured:
            continue
        matches = [_matches(r, method) for r in measured]
        patients = [r.patient for r in measured]
        estimates = bootstrap.estimate(patients, _of(matches, detection.detection_figures))
        entry: Document = {"figures": {name: _plain(estimate) for name, estimate in estimates.items()}}
        if any(match.lesions for match in matches):
            false, sensitivity = detection.froc_curve(matches)
            entry["froc"] = {"false_per_case": false.tolist(), "sensitivity": sensitivity.tolist()}
        if method != MODEL:
            difference = bootstrap.estimate(patients, _difference([_matches(r, MODEL) for r in measured], matches))
            entry["difference"] = {name: _plain(estimate) for name, estimate in difference.items()}
        methods[method] = entry
    lesions = sum(len(r.truth_boxes or ()) for r in chosen)
    return {"cases": len(chosen), "lesions": lesions, "methods": methods} if chosen else None


def _matches(result: CaseResult, method: str) -> detection.Matches:
    given = result.methods[method]
    return detection.match_boxes(given.boxes or (), given.scores, result.truth_boxes or ())


def _of(
    matches: Sequence[detection.Matches], figures: Callable[[Sequence[detection.Matches]], dict[str, float]]
) -> Callable[[Indices], dict[str, float]]:
    return lambda indices: figures([matches[index] for index in indices])


def _difference(
    a: Sequence[detection.Matches], b: Sequence[detection.Matches]
) -> Callable[[Indices], dict[str, float]]:
    first, second = _of(a, detection.detection_figures), _of(b, detection.detection_figures)

    def subtract(indices: Indices) -> dict[str, float]:
        own, other = first(indices), second(indices)
        return {name: own[name] - other[name] for name in own}

    return subtract


def grading_summary(results: Sequence[CaseResult], bootstrap: Bootstrap) -> Document | None:
    """Of each way to grade: `grading.FIGURES` with intervals, and its reliability curve."""
    chosen = [r for r in results if r.grade is not None and r.graded]
    if not chosen:
        return None
    high = np.array([r.grade == "HGG" for r in chosen])
    ways = {MODEL: _array([r.probability_hgg for r in chosen])}
    scaled = [r.scaled_probability_hgg is not None for r in chosen if r.probability_hgg is not None]
    if scaled and all(scaled):
        ways[SCALED] = _array([r.scaled_probability_hgg for r in chosen])
    ways[ALWAYS_HGG] = np.ones(len(chosen))
    methods = {}
    for method, probabilities in ways.items():
        estimates = bootstrap.estimate([r.patient for r in chosen], _grades(probabilities, high))
        given = np.isfinite(probabilities)
        bins = grading.reliability(probabilities[given], high[given])
        figures = {name: _plain(estimate) for name, estimate in estimates.items()}
        methods[method] = {"figures": figures, "reliability": [asdict(each) for each in bins]}
    ungraded = sum(r.probability_hgg is None for r in chosen)
    return {
        "cases": len(chosen),
        "hgg": int(high.sum()),
        "lgg": int((~high).sum()),
        "ungraded": ungraded,
        "methods": methods,
    }


def _grades(
    probabilities: npt.NDArray[np.floating], high: npt.NDArray[np.bool_]
) -> Callable[[Indices], dict[str, float]]:
    return lambda indices: grading.grading_figures(probabilities[indices], high[indices])


def _array(values: Sequence[float | None]) -> npt.NDArray[np.floating]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _plain(estimate: Estimate) -> Document:
    return {name: value if np.isfinite(value) else None for name, value in asdict(estimate).items()}
