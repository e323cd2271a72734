"""What the folder holds of each study, read one at a time, and the totals of all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MTMed3DCore.cohort.folder import THUMBNAIL, CohortFolder
from MTMed3DCore.cohort.outcome import Refusal
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.exports import FINDINGS

DONE, FAILED, PENDING = "done", "failed", "pending"
UNREADABLE = Refusal("findings-unreadable", "Its findings.json cannot be read.", "Run the command again.", 1)
STAGES = ("read", "prepare", "infer", "write", "total")


@dataclass(frozen=True)
class Row:
    """One study.

    Args:
        name: of the study.
        status: `DONE`, `FAILED` or `PENDING`.
        folder: of the result.
        findings: the document ``findings.json`` of a study that is done.
        refusal: of one that failed.
        outdated: whether a result of other inputs, model or settings stands in the folder of one that is not done.
    """

    name: str
    status: str
    folder: Path
    findings: Mapping[str, Any] | None = None
    refusal: Refusal | None = None
    outdated: bool = False

    def picture(self) -> bytes | None:
        """The thumbnail."""
        try:
            return (self.folder / THUMBNAIL).read_bytes()
        except OSError:
            return None


def rows(requests: Sequence[Request], folder: CohortFolder, statuses: Mapping[str, str]) -> Iterator[Row]:
    """The studies in the order of the list, read as they are asked for."""
    for request in requests:
        yield _row(request.name, folder, statuses[request.name])


def _row(name: str, cohort: CohortFolder, status: str) -> Row:
    place = cohort.place(name)
    if status != DONE:
        refusal = place.failure() if status == FAILED else None
        return Row(name, status, place.folder, refusal=refusal, outdated=bool(place.record()))
    try:
        document = json.loads((place.folder / FINDINGS).read_text(encoding="utf-8"))
        return Row(name, status, place.folder, findings=document)
    except (OSError, ValueError):
        return Row(name, FAILED, place.folder, refusal=UNREADABLE)


@dataclass
class Overall:
    """Sums over a cohort.

    Args:
        studies: by status.
        kept: results that were there before the run.
        grades: studies by grade; ``"none"`` where no grade was given.
        tumour_free: studies without a lesion.
        lesions: in all studies.
        warnings: studies by the code of a warning.
        failures: studies by the code of the refusal.
        seconds: by stage, summed over the results.
        wall_s: that the run took.
    """

    studies: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    grades: Counter[str] = field(default_factory=Counter)
    tumour_free: int = 0
    lesions: int = 0
    warnings: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    wall_s: float = 0.0

    @property
    def total(self) -> int:
        """Studies in all."""
        return sum(self.studies.values())


def totals_of(
    requests: Sequence[Request], folder: CohortFolder, statuses: Mapping[str, str], kept: int, wall_s: float
) -> Overall:
    """The totals."""
    overall = Overall(kept=kept, wall_s=wall_s)
    for row in rows(requests, folder, statuses):
        overall.studies[row.status] += 1
        if row.refusal is not None:
            overall.failures[row.refusal.code] += 1
        if row.findings is None:
            continue
        grade = row.findings["grade"]
        overall.grades["none" if grade is None else grade["label"]] += 1
        overall.lesions += len(row.findings["lesions"])
        overall.tumour_free += not row.findings["lesions"]
        overall.warnings.update({notice["code"] for notice in row.findings["warnings"]})
        for stage in STAGES:
            overall.seconds[stage] += row.findings["timing_s"].get(stage, 0.0)
    return overall
