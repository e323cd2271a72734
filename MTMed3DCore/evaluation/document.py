"""``evaluation.json``: everything about an evaluation, after ``schemas/evaluation-1.schema.json`` of this package."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import MTMed3DCore
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.evaluation.bootstrap import Bootstrap
from MTMed3DCore.evaluation.detection import HIT_IOU, match_boxes
from MTMed3DCore.evaluation.files import EVALUATION, read_json, write_json
from MTMed3DCore.evaluation.lesionwise import DILATION_MM, SMALLEST_MM3
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.evaluation.results import MODEL, REGION_FIGURES, THRESHOLDS, CaseResult, Failure
from MTMed3DCore.evaluation.surface import ABSENT_MM
from MTMed3DCore.json_schema import first_fault

SCHEMA = "mtmed3d.evaluation/1"
RULES: Mapping[str, float] = {
    "empty_hd95_mm": ABSENT_MM,
    "hit_iou": HIT_IOU,
    "lesion_dilation_mm": DILATION_MM,
    "lesion_smallest_mm3": SMALLEST_MM3,
}
"""Constants of the measures; figures made with other ones do not stand beside these."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Args:
        source: the model's identity, or the folder of predictions; of several folds, each fold's.
        data: the list, its hash, the fold, the number of cases asked for, and of those that the model was trained on
            (None where it is not at hand).
        results: of cases.
        failures: cases without a result.
        summary: see `summary.summarise`.
        bootstrap: how the intervals were made.
        temperature: see `temperature.temperature_from`, or None.
        folds: of a cross-validation, see `crossvalidation.cross_validation`; else None.
        notes: what a reader must know.
        created: UTC, ISO 8601.
        rules: constants of the measures.
    """

    source: Mapping[str, Any]
    data: Mapping[str, Any]
    results: Sequence[CaseResult]
    failures: Sequence[Failure]
    summary: Mapping[str, Any]
    bootstrap: Bootstrap
    temperature: Mapping[str, Any] | None = None
    folds: Sequence[Mapping[str, Any]] | None = None
    notes: Sequence[str] = ()
    created: str = ""
    rules: Mapping[str, float] = field(default_factory=lambda: RULES)

    def to_dict(self) -> dict[str, Any]:
        """As ``evaluation.json`` holds it."""
        return {
            "schema": SCHEMA,
            "created": self.created or datetime.now(UTC).isoformat(timespec="seconds"),
            "software": {"mtmed3d": MTMed3DCore.__version__},
            "source": dict(self.source),
            "data": dict(self.data),
            "rules": dict(self.rules),
            "bootstrap": asdict(self.bootstrap),
            "temperature": self.temperature,
            "notes": list(self.notes),
            "summary": dict(self.summary),
            "folds": None if self.folds is None else list(self.folds),
            "failures": [asdict(failure) for failure in self.failures],
            "cases": [result.to_dict() for result in self.results],
        }

    def write(self, folder: Path) -> None:
        """Write ``evaluation.json`` into a folder."""
        document = self.to_dict()
        fault = first_fault(document, "evaluation-1")
        if fault is not None:
            raise InputRefused("evaluation-invalid", f"{EVALUATION} would not follow {SCHEMA} at {fault}.")
        write_json(folder / EVALUATION, document)


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation from its folder.

    Raises:
        InputRefused: ``evaluation-unreadable``, ``evaluation-invalid``.
    """
    path = folder / EVALUATION if folder.is_dir() else folder
    remedy = "Give the folder of a finished `mtmed3d evaluate`."
    document = read_json(path, "finished evaluation", remedy)
    fault = first_fault(document, "evaluation-1")
    if fault is not None:
        raise InputRefused("evaluation-invalid", f"{path} does not follow {SCHEMA} at {fault}.", remedy)
    return Evaluation(
        document["source"],
        document["data"],
        [CaseResult.from_dict(entry) for entry in document["cases"]],
        [Failure(**entry) for entry in document["failures"]],
        document["summary"],
        Bootstrap(**document["bootstrap"]),
        document["temperature"],
        document["folds"],
        document["notes"],
        document["created"],
        document["rules"],
    )


def cases_table(results: Sequence[CaseResult]) -> str:
    """``cases.csv``: one case a row, the measures of the model and of the threshold baseline; unknown is empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(_row(results[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(result) for result in results)
    return stream.getvalue()


def _row(result: CaseResult) -> dict[str, Any]:
    row: dict[str, Any] = {"case": result.id, "patient": result.patient, "fold": result.fold}
    columns = (*REGION_FIGURES, "lesions", "missed", "false", "truth_ml", "found_ml")
    for method, prefix in ((MODEL, ""), (THRESHOLDS, "thresholds_")):
        regions = result.methods[method].regions if method in result.methods else None
        for region in EVALUATED:
            for name in columns:
                row[f"{prefix}{region}_{name}"] = None if regions is None else getattr(regions[region], name)
    row |= box_counts(result)
    row |= {
        "grade": result.grade,
        "probability_hgg": result.probability_hgg,
        "scaled_probability_hgg": result.scaled_probability_hgg,
        "analysis_s": result.seconds.get("analysis"),
        "warnings": " ".join(result.warnings),
    }
    return row


def box_counts(result: CaseResult) -> dict[str, int | None]:
    """True lesions, lesions that a box of the model finds, and boxes that find none."""
    names = ("boxes_true", "boxes_found", "boxes_false")
    if result.truth_boxes is None or MODEL not in result.methods:
        return dict.fromkeys(names)
    given = result.methods[MODEL]
    matches = match_boxes(given.boxes or (), given.scores, result.truth_boxes)
    counts = (matches.lesions, int(matches.hits.sum()), int((~matches.hits).sum()))
    return dict(zip(names, counts, strict=True))
