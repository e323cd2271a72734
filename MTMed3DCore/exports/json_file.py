"""``findings.json``: findings without their label map, after ``schemas/findings-1.schema.json`` of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.domain.check import document_check
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.findings import SCHEMA, Findings, Grade, Lesion, ModelIdentity
from MTMed3DCore.geometry import Grid, WorldBox
from MTMed3DCore.json_schema import first_fault
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation.record import document_record

VOXEL_DECIMALS = 6
"""Voxel boxes are rounded to a millionth of a voxel, so that a bound at a voxel's face does not slip past it."""


def findings_document(findings: Findings, timing_s: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Findings as the JSON object that ``findings.json`` holds.

    Args:
        findings: what to write.
        timing_s: seconds by stage in place of those of the findings.
    """
    grid = findings.grid
    created = findings.created.astimezone(UTC).isoformat().replace("+00:00", "Z")
    study_grid = {"shape": list(grid.shape), "spacing_mm": _floats(grid.spacing), "affine_ras": _floats(grid.affine)}
    document = {
        "schema": SCHEMA,
        "created": created,
        "study": {"id": findings.study_id, "sequences": dict(findings.sources), "grid": study_grid},
        "model": asdict(findings.model),
        "grade": None if findings.grade is None else _grade_document(findings.grade),
        "volumes_ml": _plain(findings.volumes_ml),
        "lesions": [_lesion_document(lesion, grid) for lesion in findings.lesions],
        "warnings": [asdict(notice) for notice in findings.warnings],
        "timing_s": _plain(findings.timing_s if timing_s is None else timing_s),
        "software": dict(findings.software),
    }
    if findings.preparation is not None:
        document["preparation"] = _plain(findings.preparation.document())
    if findings.comparison is not None:
        document["comparison"] = _plain(findings.comparison)
    if findings.domain:
        document["domain"] = [check.document() for check in findings.domain]
    if findings.lesion_calibration is not None:
        document["lesion_calibration"] = _plain(findings.lesion_calibration)
    if findings.regions_by != "model":
        document["regions_by"] = findings.regions_by
    return document


def check_document(document: Any, where: str) -> None:
    """Refuse what is not a ``findings.json`` object.

    Args:
        document: parsed JSON.
        where: the file's name, for the error.

    Raises:
        InputRefused: ``findings-invalid``, naming the first field that does not fit.
    """
    fault = first_fault(document, "findings-1")
    if fault is not None:
        text = f"{where} does not follow {SCHEMA} at {fault}."
        raise InputRefused("findings-invalid", text, "Write it with this version of MTMed3D.")


def write_json(findings: Findings, path: Path, timing_s: Mapping[str, float] | None = None) -> None:
    """Write ``findings.json``.

    Raises:
        InputRefused: ``findings-invalid``, the findings hold a value that the schema does not allow, NaN included.
    """
    document = findings_document(findings, timing_s)
    check_document(document, path.name)
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        text = f"{path.name} would hold a number that is not finite: {error}."
        raise InputRefused("findings-invalid", text, "Check the measurements of the findings.") from error
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def read_document(path: Path) -> dict[str, Any]:
    """Parse and check a ``findings.json``.

    Raises:
        InputRefused: ``findings-missing`` or ``findings-invalid``.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = "Name the output folder of an analysis."
        raise InputRefused("findings-missing", f"{path} cannot be read: {error}.", remedy) from error
    except (ValueError, RecursionError) as error:
        remedy = "Restore the file or analyse the study again."
        raise InputRefused("findings-invalid", f"{path} is not JSON: {error}.", remedy) from error
    check_document(document, path.name)
    return document


def document_grid(document: Mapping[str, Any]) -> Grid:
    """The T1ce grid of a checked document."""
    grid = document["study"]["grid"]
    return Grid(tuple(grid["shape"]), np.array(grid["affine_ras"]))


def document_findings(
    document: Mapping[str, Any], labels: npt.NDArray[np.uint8], brain: npt.NDArray[np.bool_] | None = None
) -> Findings:
    """Findings of a checked document and its label map uint8 (X, Y, Z); the study itself is not in them.

    Args:
        document: of ``findings.json``.
        labels: on the T1ce grid.
        brain: mask (X, Y, Z) of the preparation, where it is at hand.
    """
    grade, preparation, grid = document["grade"], document.get("preparation"), document_grid(document)
    return Findings(
        study_id=document["study"]["id"],
        sources=document["study"]["sequences"],
        grid=grid,
        labels=labels,
        lesions=tuple(_lesion(entry) for entry in document["lesions"]),
        grade=None if grade is None else Grade(**grade),
        model=ModelIdentity(**document["model"]),
        warnings=tuple(Notice(**notice) for notice in document["warnings"]),
        timing_s=document["timing_s"],
        software=document["software"],
        created=datetime.fromisoformat(document["created"]),
        preparation=None if preparation is None else document_record(preparation, grid, brain),
        comparison=document.get("comparison"),
        regions_by=document.get("regions_by", "model"),
        domain=tuple(document_check(entry) for entry in document.get("domain", ())),
        lesion_calibration=document.get("lesion_calibration"),
    )


def _grade_document(grade: Grade) -> dict[str, Any]:
    document: dict[str, Any] = {"label": grade.label, "probability_hgg": float(grade.probability_hgg)}
    if grade.by != "model":
        document["by"] = grade.by
    if grade.calibration is not None:
        document["calibration"] = _plain(grade.calibration)
    return document


def _lesion_document(lesion: Lesion, grid: Grid) -> dict[str, Any]:
    box = lesion.box
    document = {
        "id": lesion.id,
        "score": float(lesion.score),
        "origin": lesion.origin,
        "box": {"center_ras_mm": _floats(box.center), "size_mm": _floats(box.size), "axes_ras": _floats(box.axes)},
        "voxel_box": [round(bound, VOXEL_DECIMALS) + 0.0 for bound in box.to_voxel(grid).to_list()],
        "volumes_ml": _plain(lesion.volumes_ml),
        "longest_diameter_mm": float(lesion.longest_diameter_mm),
        "rano": None if lesion.rano is None else _plain(lesion.rano),
    }
    if lesion.laterality is not None:
        document["laterality"] = _plain(lesion.laterality)
    if lesion.probability is not None:
        document["probability"] = float(lesion.probability)
    return document


def _lesion(entry: Mapping[str, Any]) -> Lesion:
    box = entry["box"]
    world = WorldBox(np.array(box["center_ras_mm"]), np.array(box["size_mm"]), np.array(box["axes_ras"]))
    kept = ("id", "score", "volumes_ml", "longest_diameter_mm", "origin", "rano")
    known = {name: entry[name] for name in kept}
    return Lesion(box=world, **known, laterality=entry.get("laterality"), probability=entry.get("probability"))


def _plain(value: Any) -> Any:
    """The same values without numpy types, which JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _floats(values: npt.NDArray[Any]) -> Any:
    return np.asarray(values, dtype=np.float64).tolist()
