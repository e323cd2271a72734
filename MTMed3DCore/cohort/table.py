"""``summary.csv``: one study a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from MTMed3DCore.cohort.folder import SUMMARY, CohortFolder
from MTMed3DCore.cohort.rows import STAGES, Row, rows
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.findings import REGION_LABELS
from MTMed3DCore.whole_file import writing_whole

COLUMNS = (
    *("id", "status", "folder", "grade", "probability_hgg", "lesions"),
    *(f"{region}_ml" for region in REGION_LABELS),
    *("longest_diameter_mm", "warnings", "code", "text", "remedy", "model", "model_version", "device", "precision"),
    *(f"{stage}_s" for stage in STAGES),
)


def write_table(requests: Sequence[Request], folder: CohortFolder, statuses: Mapping[str, str]) -> None:
    """Write ``summary.csv`` in the order of the list; what is not known is empty."""
    with writing_whole(folder.root / SUMMARY) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows(requests, folder, statuses):
            writer.writerow(_cells(row))
        text.flush()
        text.detach()  # the stream is closed by whoever opened it


def _cells(row: Row) -> dict[str, Any]:
    cells: dict[str, Any] = {"id": row.name, "status": row.status, "folder": row.folder.name}
    if row.refusal is not None:
        cells |= {"code": row.refusal.code, "text": row.refusal.text, "remedy": row.refusal.remedy}
    findings = row.findings
    if findings is None:
        return cells
    grade, lesions, software = findings["grade"], findings["lesions"], findings["software"]
    if grade is not None:
        cells |= {"grade": grade["label"], "probability_hgg": round(grade["probability_hgg"], 4)}
    cells["lesions"] = len(lesions)
    cells |= {f"{region}_ml": round(findings["volumes_ml"].get(region, 0.0), 3) for region in REGION_LABELS}
    if lesions:
        cells["longest_diameter_mm"] = round(max(lesion["longest_diameter_mm"] for lesion in lesions), 1)
    cells["warnings"] = " ".join(notice["code"] for notice in findings["warnings"])
    cells |= {"model": findings["model"]["name"], "model_version": findings["model"]["version"]}
    cells |= {"device": software.get("device", ""), "precision": software.get("precision", "")}
    return cells | {f"{stage}_s": round(findings["timing_s"].get(stage, 0.0), 3) for stage in STAGES}
