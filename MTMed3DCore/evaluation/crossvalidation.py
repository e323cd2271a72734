"""Several evaluations, one a fold, as one: each fold's figures, their spread, and all patients pooled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.evaluation.bootstrap import Bootstrap, notes_on
from MTMed3DCore.evaluation.document import RULES, Evaluation, read_evaluation
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.evaluation.results import MODEL, REGION_FIGURES
from MTMed3DCore.evaluation.summary import summarise


def cross_validation(folders: Sequence[Path], bootstrap: Bootstrap) -> Evaluation:
    """Put evaluations of disjoint patients together.

    Detection and grading are pooled over models whose scores need not mean the same; each fold's figures and their
    mean and spread stand beside, and are what does not depend on that.

    Raises:
        WrongUse: ``folds-few``, ``folds-patients`` (a patient in two of them), ``folds-rules`` (measured otherwise).
        InputRefused: a folder without a finished evaluation.
    """
    if len(folders) < 2:
        raise WrongUse("folds-few", "A summary over folds needs two evaluations at least.", "Give their folders.")
    evaluations = [read_evaluation(folder) for folder in folders]
    for folder, each in zip(folders, evaluations, strict=True):
        if each.rules != RULES:
            text = f"{folder} was measured by other rules than this version's."
            raise WrongUse("folds-rules", text, "Evaluate it again with this version.")
    owners: Counter[str] = Counter(patient for e in evaluations for patient in {r.patient for r in e.results})
    twice = [patient for patient, count in owners.items() if count > 1]
    if twice:
        text = f"{len(twice)} patients are in more than one of the evaluations, {min(twice)} among them."
        raise WrongUse("folds-patients", text, "Give one evaluation a fold, each of its own validation cases.")
    results = [result for each in evaluations for result in each.results]
    if not results:
        raise InputRefused("no-results", "None of the evaluations holds a measured case.")
    folds = [_fold(folder, each) for folder, each in zip(folders, evaluations, strict=True)]
    return Evaluation(
        source={"evaluations": [dict(each.source) for each in evaluations]},
        data={
            "evaluations": [dict(each.data) for each in evaluations],
            "cases": sum(e.data["cases"] for e in evaluations),
        },
        results=results,
        failures=[failure for each in evaluations for failure in each.failures],
        summary=summarise(results, bootstrap),
        bootstrap=bootstrap,
        folds=folds,
        notes=_notes(folders, evaluations),
    )


def fold_spread(folds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, int]]:
    """Mean, standard deviation (n - 1) and number of the folds that have it, of each figure of the model."""
    spread = {}
    for name in dict.fromkeys(key for fold in folds for key in fold["figures"]):
        values = [value for fold in folds if (value := fold["figures"].get(name)) is not None]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        spread[name] = (float(np.mean(values)) if values else float("nan"), deviation, len(values))
    return spread


def _fold(folder: Path, evaluation: Evaluation) -> dict[str, Any]:
    """One row of the table of folds."""
    figures: dict[str, float | None] = {}
    summary = evaluation.summary
    if summary["segmentation"]:
        regions = summary["segmentation"]["methods"][MODEL]
        figures |= {f"{r} {name}": regions[r][name]["value"] for r in EVALUATED for name in REGION_FIGURES}
    for task in ("detection", "grading"):
        if summary[task]:
            own = summary[task]["methods"][MODEL]["figures"]
            figures |= {f"{task} {name}": entry["value"] for name, entry in own.items()}
    return {
        "folder": str(folder),
        "fold": evaluation.data.get("fold"),
        "cases": len(evaluation.results),
        "failures": len(evaluation.failures),
        "figures": figures,
    }


def _notes(folders: Sequence[Path], evaluations: Sequence[Evaluation]) -> list[str]:
    notes = notes_on([result.patient for each in evaluations for result in each.results])
    for folder, each in zip(folders, evaluations, strict=True):
        own = notes_on([result.patient for result in each.results])
        notes += [f"{folder.name}: {note}" for note in each.notes if note not in own]
    lists = {each.data.get("sha256") for each in evaluations}
    if len(lists) > 1:
        notes.append("The evaluations are of different data lists.")
    scaled = sum(each.temperature is not None for each in evaluations)
    if 0 < scaled < len(evaluations):
        notes.append(f"Only {scaled} of {len(evaluations)} evaluations have a temperature.")
    return notes
