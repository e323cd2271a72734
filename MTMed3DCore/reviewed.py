"""A study whose regions, boxes and grade a reader has reviewed: the way back from correction to training.

::

    case.json                          schema ``mtmed3d.reviewed-case/1``: who decided what, boxes, grade
    t1, t1ce, t2, flair  .nii.gz       each on its own grid, in the frame of T1ce
    seg.nii.gz                         1 necrotic core, 2 oedema, 4 enhancing, on the T1ce grid

`mtmed3d datalist` takes such a folder as a case. Rejected boxes stay in ``case.json``, so that nothing that a reader
said is lost, and do not train.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports.nifti import read_nifti, save_image, save_labels
from MTMed3DCore.findings import ModelIdentity
from MTMed3DCore.geometry import Grid, WorldBox
from MTMed3DCore.json_schema import first_fault
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.volume import Volume, read_volume

SCHEMA = "mtmed3d.reviewed-case/1"
CASE_FILE = "case.json"
LABEL_FILE = "seg.nii.gz"
REJECTED = "rejected"


@dataclass(frozen=True, eq=False)
class ReviewedBox:
    """One lesion and what a reader made of it.

    Args:
        id: number of the lesion.
        box: RAS mm, in the frame of T1ce.
        state: ``proposed`` (nobody looked), ``kept``, ``rejected``, ``edited`` or ``added``.
        score: of the model, 0 to 1; None for an added box.
        decided: UTC time of the reader's decision, or an empty text.
    """

    id: int
    box: WorldBox
    state: str
    score: float | None = None
    decided: str = ""

    @property
    def by(self) -> str:
        """``model`` or ``reader``."""
        return "model" if self.state == "proposed" else "reader"


@dataclass(frozen=True, eq=False)
class ReviewedCase:
    """A reviewed study.

    Args:
        id: name of the study; never a patient's name.
        images: the four sequences, in the frame of T1ce.
        labels: uint8 (X, Y, Z) on the T1ce grid, 1, 2, 4.
        boxes: rejected ones included.
        grade: ``"HGG"``, ``"LGG"`` or None.
        grade_by: ``"model"``, ``"reader"`` or None.
        probability_hgg: of the model.
        regions_by: ``"model"`` or ``"reader"``.
        verdict, difficulty, comment: of the reader, may be empty.
        model: whose result was reviewed.
        findings: document of that result, as ``findings.json`` held it.
        created: UTC.
        grade_decided, regions_decided: UTC times of the reader's decisions, or empty texts.
        brain: mask (X, Y, Z) on the T1ce grid with which the study was analysed, for measurements; not stored.
    """

    id: str
    images: Mapping[str, Volume]
    labels: npt.NDArray[np.uint8]
    boxes: tuple[ReviewedBox, ...]
    grade: str | None
    grade_by: str | None
    probability_hgg: float | None
    regions_by: str
    verdict: str = ""
    difficulty: str = ""
    comment: str = ""
    model: ModelIdentity = field(default_factory=lambda: ModelIdentity("none", "0", "", ""))
    findings: Mapping[str, Any] | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    grade_decided: str = ""
    regions_decided: str = ""
    brain: npt.NDArray[np.bool_] | None = None

    @property
    def grid(self) -> Grid:
        """Of T1ce."""
        return self.images["t1ce"].grid

    @property
    def accepted_boxes(self) -> tuple[ReviewedBox, ...]:
        """The boxes that the reader did not reject."""
        return tuple(each for each in self.boxes if each.state != REJECTED)


def write_case_files(case: ReviewedCase, folder: Path, progress: Progress = silent) -> None:
    """Write ``case.json``, the images and the label map into an existing folder."""
    for index, name in enumerate(SEQUENCES):
        progress("write", index / len(SEQUENCES), f"Writing {name}.nii.gz")
        save_image(case.images[name], folder / f"{name}.nii.gz")
    save_labels(case.labels, case.grid, folder / LABEL_FILE)
    document = case_document(case)
    _check(document, CASE_FILE)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CASE_FILE).write_text(text + "\n", encoding="utf-8")


def case_document(case: ReviewedCase) -> dict[str, Any]:
    """What ``case.json`` holds."""
    model = asdict(case.model)
    return {
        "schema": SCHEMA,
        "created": case.created.astimezone(UTC).isoformat(timespec="seconds"),
        "id": case.id,
        "grid": {"shape": list(case.grid.shape), "affine_ras": case.grid.affine.tolist()},
        "images": {name: f"{name}.nii.gz" for name in SEQUENCES},
        "label": LABEL_FILE,
        "grade": {
            "label": case.grade,
            "by": case.grade_by,
            "probability_hgg": case.probability_hgg,
            "decided": case.grade_decided,
        },
        "regions": {"by": case.regions_by, "decided": case.regions_decided},
        "boxes": [_box_document(each) for each in case.boxes],
        "review": {"verdict": case.verdict, "difficulty": case.difficulty, "comment": case.comment},
        "model": {name: model[name] for name in ("name", "version", "sha256")},
        "findings": None if case.findings is None else _without_names(case.findings, case.id),
    }


def _without_names(findings: Mapping[str, Any], case_id: str) -> dict[str, Any]:
    """Findings without the names of the files that were analysed, which may hold a patient's name."""
    study = {**findings["study"], "id": case_id, "sequences": {name: f"{name}.nii.gz" for name in SEQUENCES}}
    return {**findings, "study": study}


def read_case_document(folder: Path) -> dict[str, Any]:
    """Parse and check ``case.json``.

    Raises:
        InputRefused: ``reviewed-case-missing`` or ``reviewed-case-damaged``.
    """
    path = folder / CASE_FILE
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        text = f"{path} cannot be read: {error}."
        raise InputRefused("reviewed-case-missing", text, "Give the folder of an exported case.") from error
    except ValueError as error:
        raise InputRefused("reviewed-case-damaged", f"{path} is no JSON: {error}.", "Export it again.") from error
    _check(document, str(path))
    return document


def read_reviewed_case(folder: Path, progress: Progress = silent) -> ReviewedCase:
    """Read an exported case, images included.

    Raises:
        InputRefused: as `read_case_document`, `read_volume` and `read_nifti`; ``reviewed-case-grid`` where T1ce is not
            on the grid that ``case.json`` states.
    """
    document = read_case_document(folder)
    images = {}
    for index, name in enumerate(SEQUENCES):
        progress("read", index / len(SEQUENCES), f"Reading {document['images'][name]}")
        images[name] = read_volume(inside(folder, document["images"][name]))
    grid = Grid(tuple(document["grid"]["shape"]), np.array(document["grid"]["affine_ras"]))
    if not grid.same_as(images["t1ce"].grid):
        text = f"{folder} states a grid of {grid.shape} that is not that of its T1ce, {images['t1ce'].grid.shape}."
        raise InputRefused("reviewed-case-grid", text, "Export the case again.")
    return ReviewedCase(
        document["id"],
        images,
        read_nifti(inside(folder, document["label"]), grid),
        document_boxes(document),
        document["grade"]["label"],
        document["grade"]["by"],
        document["grade"].get("probability_hgg"),
        document["regions"]["by"],
        **document["review"],
        model=ModelIdentity(**document["model"], trained_on=""),
        findings=document["findings"],
        created=datetime.fromisoformat(document["created"]),
        grade_decided=document["grade"].get("decided", ""),
        regions_decided=document["regions"].get("decided", ""),
    )


def document_boxes(document: Mapping[str, Any]) -> tuple[ReviewedBox, ...]:
    """The boxes of a checked ``case.json``."""
    return tuple(
        ReviewedBox(
            entry["id"],
            WorldBox(np.array(entry["center_ras_mm"]), np.array(entry["size_mm"]), np.array(entry["axes_ras"])),
            entry["state"],
            entry["score"],
            entry.get("decided", ""),
        )
        for entry in document["boxes"]
    )


def inside(folder: Path, name: str) -> Path:
    """A file that ``case.json`` names, which must lie in its folder.

    Raises:
        InputRefused: ``reviewed-case-damaged``.
    """
    path = folder / name
    if path.resolve().parent != folder.resolve():
        text = f"{folder / CASE_FILE} names {name!r}, which lies outside of its folder."
        raise InputRefused("reviewed-case-damaged", text, "Export the case again.")
    return path


def _box_document(each: ReviewedBox) -> dict[str, Any]:
    return {
        "id": each.id,
        "state": each.state,
        "score": each.score,
        "by": each.by,
        "decided": each.decided,
        "center_ras_mm": each.box.center.tolist(),
        "size_mm": each.box.size.tolist(),
        "axes_ras": each.box.axes.tolist(),
    }


def _check(document: Any, where: str) -> None:
    fault = first_fault(document, "reviewed-case-1")
    if fault is not None:
        text = f"{where} does not follow {SCHEMA} at {fault}."
        raise InputRefused("reviewed-case-damaged", text, "Export the case again.")
