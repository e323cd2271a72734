"""What an analysis found: labels, boxes, grade, measurements and provenance. Frozen, free of torch.

`Findings` is the one type between the network and everything that shows or stores a result. Its JSON form is described
by ``schemas/findings-1.schema.json`` in this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.geometry import Grid, WorldBox
from MTMed3DCore.notice import Notice

if TYPE_CHECKING:
    from MTMed3DCore.domain.check import DomainCheck
    from MTMed3DCore.preparation.record import PreparationRecord
    from MTMed3DCore.study import Study

SCHEMA = "mtmed3d.findings/1"
NECROTIC_CORE, OEDEMA, ENHANCING = 1, 2, 4
"""Label values of the written segmentation (the BraTS 2017 to 2021 convention)."""
TUMOUR_CORE, WHOLE_TUMOUR, ENHANCING_TUMOUR = range(3)
"""Channels of the regions' probabilities, of which one voxel may belong to several."""
REGION_LABELS: Mapping[str, tuple[int, ...]] = {
    "whole_tumour": (NECROTIC_CORE, OEDEMA, ENHANCING),
    "tumour_core": (NECROTIC_CORE, ENHANCING),
    "enhancing": (ENHANCING,),
    "necrotic_core": (NECROTIC_CORE,),
    "oedema": (OEDEMA,),
}
"""Every measured region and the labels that make it up."""
RESEARCH_USE = "For research use only. Not a medical device; not for diagnosis or treatment."


@dataclass(frozen=True)
class ModelIdentity:
    """Which model produced the findings: name, version, SHA-256 of its weights, what it was trained on."""

    name: str
    version: str
    sha256: str
    trained_on: str


@dataclass(frozen=True)
class Grade:
    """Imaging-based likelihood of high grade; not the WHO grade, which needs tissue.

    Args:
        label: ``"HGG"`` or ``"LGG"``.
        probability_hgg: 0 to 1; the model's, also where a reader set the label, and 0 or 1 where there is no model's.
            With a temperature in `calibration` it is the calibrated one.
        by: ``"model"`` or ``"reader"``, who set the label.
        calibration: how the probability was calibrated, by the model's metadata (method, studies, data, and
            temperature and calibration_error where they are known); None where it was not.
    """

    label: str
    probability_hgg: float
    by: str = "model"
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Lesion:
    """One tumour: its box, its score, and what was measured inside it.

    Args:
        id: 1, 2, ... in order of falling score.
        score: confidence of the detection, 0 to 1.
        box: oriented along the T1ce axes, RAS mm.
        volumes_ml: millilitres of each region of `REGION_LABELS` that belong to this lesion.
        longest_diameter_mm: greatest distance between two points of the lesion's whole tumour (or of its box when it
            has no voxels), in mm.
        origin: ``"detection"`` when the box head found it, ``"region"`` when the box was drawn round a segmented
            region that no detected box holds.
        rano: bidimensional measurement by the RANO criteria, or None where none was taken; see
            `MTMed3DCore.measurements.rano`.
        laterality: side of the brain, or None where it was not determined; see
            `MTMed3DCore.measurements.laterality`.
        probability: that the lesion is a true one, 0 to 1, by the model's calibration of its scores; None where the
            model has none.
    """

    id: int
    score: float
    box: WorldBox
    volumes_ml: Mapping[str, float]
    longest_diameter_mm: float
    origin: str = "detection"
    rano: Mapping[str, Any] | None = None
    laterality: Mapping[str, Any] | None = None
    probability: float | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """The result of analysing one study.

    Args:
        study_id: name of the study (a folder or file name; never a patient's name read from a header).
        sources: path of each sequence, keys ``t1, t1ce, t2, flair``.
        grid: the T1ce grid as it came in.
        labels: uint8 (X, Y, Z) on `grid`: 0 none, 1 necrotic core, 2 oedema, 4 enhancing.
        lesions: in order of falling score.
        grade: None when no tumour was found or the model does not grade.
        model: which model.
        warnings: what the reader must know.
        timing_s: seconds by stage: read, prepare, infer, write, total.
        software: versions, device and precision.
        study: the study itself, for pictures; None when the findings were read back from disk.
        created: UTC time of the analysis.
        preparation: what was done before the network saw the study; None where that is not known.
        model_card: what the model's makers say of it, heading by heading, for the report; not part of the JSON.
        comparison: what changed since a prior study, or None where none was given; see
            `MTMed3DCore.measurements.comparison`.
        regions_by: ``"model"``, or ``"reader"`` where a reader corrected the labels.
        domain: what was measured of whether the study is of the kind that the model was made for; see
            `MTMed3DCore.domain`. Whatever lies outside its range is among the warnings too.
        lesion_calibration: how the lesions' probabilities were calibrated, like `Grade.calibration`.
    """

    study_id: str
    sources: Mapping[str, str]
    grid: Grid
    labels: npt.NDArray[np.uint8]
    lesions: tuple[Lesion, ...]
    grade: Grade | None
    model: ModelIdentity
    warnings: tuple[Notice, ...] = ()
    timing_s: Mapping[str, float] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    study: Study | None = None
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    preparation: PreparationRecord | None = None
    model_card: Mapping[str, str] = field(default_factory=dict)
    comparison: Mapping[str, Any] | None = None
    regions_by: str = "model"
    domain: tuple[DomainCheck, ...] = ()
    lesion_calibration: Mapping[str, Any] | None = None

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Millilitres of every region of `REGION_LABELS` in the whole study."""
        return volumes_ml(self.labels, self.grid)

    def write(self, folder: str | Path, **options: Any) -> Path:
        """Write every export into `folder`; see `MTMed3DCore.exports.write_findings`."""
        from MTMed3DCore.exports import write_findings

        return write_findings(self, folder, **options)


def volumes_ml(labels: npt.NDArray[np.uint8], grid: Grid) -> dict[str, float]:
    """Millilitres of every region of `REGION_LABELS` in a label map on `grid`."""
    flat = labels.ravel(order="K")  # in the order of memory, whichever that is
    return {name: float(np.isin(flat, values).sum()) * grid.voxel_volume_ml for name, values in REGION_LABELS.items()}
