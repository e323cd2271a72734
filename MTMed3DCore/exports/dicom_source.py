"""What every exported DICOM object has in common: the source series it refers to, the codes, the equipment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports.regions import Code
from MTMed3DCore.findings import Findings
from MTMed3DCore.geometry import Grid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "MTMed3D contributors"
PRODUCT = "MTMed3D"
SCHEME = "99MTMED3D"
"""Coding scheme of the concepts that no standard has."""
SERIES_NUMBERS = {"SEG": 9101, "SR": 9102, "DOC": 9103}
RESEARCH = "Research use only"
LPS = np.diag([-1.0, -1.0, 1.0])
_ELSEWHERE = "Load the series anew, without moving, cropping or resampling it, and analyse that."
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True, eq=False)
class DicomSources:
    """Headers of the series that were analysed.

    Args:
        t1ce: every object of the T1ce series.
        others: objects of the other three series that belong to the same study.
    """

    t1ce: Sequence[Dataset]
    others: Sequence[Dataset]

    @property
    def all(self) -> list[Dataset]:
        """The T1ce first."""
        return [*self.t1ce, *self.others]

    @property
    def frame_uid(self) -> str:
        """Frame of reference of the T1ce, in which every result lies."""
        return str(self.t1ce[0].FrameOfReferenceUID)


def sources_of(findings: Findings) -> DicomSources:
    """The source series of findings whose study came as DICOM.

    Raises:
        InputRefused: ``dicom-source``, the study did not come as DICOM, or its files have gone.
    """
    series = getattr(findings.study, "series", None) or {}
    sources = read_sources({name: [frame.path for frame in each.frames] for name, each in series.items()})
    if getattr(findings.study, "deidentified", False):
        from MTMed3DCore.exports.deidentify import deidentified_sources  # which is made of what stands here

        return deidentified_sources(sources, findings.study_id)
    return sources


def read_sources(files: Mapping[str, Sequence[Path]]) -> DicomSources:
    """Headers of the files of each sequence.

    Args:
        files: by sequence; ``t1ce`` must be there.

    Raises:
        InputRefused: ``dicom-source``.
    """
    import pydicom

    if not files.get("t1ce"):
        text = "DICOM objects refer to the series that was analysed, and this study did not come as DICOM."
        raise InputRefused("dicom-source", text, "Analyse the folder of DICOM files, or leave the DICOM export out.")
    read: dict[str, list[Dataset]] = {}
    for name, paths in files.items():
        try:
            read[name] = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in dict.fromkeys(paths)]
        except OSError as error:
            text = f"A file of the {name} series can no longer be read: {error}."
            raise InputRefused("dicom-source", text, "Put the DICOM files back and analyse again.") from error
    for dataset in read["t1ce"]:
        missing = [key for key in _NEEDED if not dataset.get(key)]
        if missing:
            text = f"The T1ce series lacks {', '.join(missing)}, which DICOM objects must refer to."
            raise InputRefused("dicom-source", text, "Export the series again with its identifiers.")
        complete(dataset)
    study = read["t1ce"][0].StudyInstanceUID
    others = [d for name in read if name != "t1ce" for d in read[name] if d.get("StudyInstanceUID") == study]
    return DicomSources(read["t1ce"], others)


def refuse_elsewhere(sources: DicomSources, grid: Grid) -> None:
    """Refuse a result on a grid that is not that of the T1ce series, for which DICOM could not state a place.

    Whoever loads a series into a viewer may move, crop or resample it there. The order and direction of the axes do not
    matter.

    Raises:
        InputRefused: ``dicom-elsewhere``.
    """
    from MTMed3DCore.dicom.datasets import frames_of

    frames = [frame for dataset in sources.t1ce for _, frame, _ in frames_of(dataset, Path()) if frame is not None]
    if not frames:
        raise InputRefused("dicom-elsewhere", "The T1ce series does not say where its slices lie.", _ELSEWHERE)
    along = [float(frame.position @ frames[0].normal) for frame in frames]
    ends = []
    for frame in (frames[int(np.argmin(along))], frames[int(np.argmax(along))]):
        (rows, columns), (row_mm, column_mm) = frame.shape, frame.spacing
        across, down = frame.orientation[0] * column_mm * (columns - 1), frame.orientation[1] * row_mm * (rows - 1)
        ends += [frame.position + a * across + b * down for a in (0, 1) for b in (0, 1)]
    last = np.array(grid.shape) - 1
    corners = grid.to_world([[i * last[0], j * last[1], k * last[2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    apart = np.linalg.norm(corners[:, None] - (np.array(ends) @ LPS)[None], axis=-1)
    farthest = max(apart.min(axis=0).max(), apart.min(axis=1).max())
    if farthest > float(grid.spacing.min()) / 2:
        text = f"The T1ce does not lie where its DICOM series does; a corner is {farthest:.1f} mm away."
        raise InputRefused("dicom-elsewhere", text, _ELSEWHERE)


def complete(dataset: Dataset) -> None:
    """Attributes that every object must have, empty where the source has none."""
    for keyword in (
        "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
        "AccessionNumber", "ReferringPhysicianName",
    ):  # fmt: skip
        if keyword not in dataset:
            setattr(dataset, keyword, None)
    if "PositionReferenceIndicator" not in dataset:
        dataset.PositionReferenceIndicator = None


def equipment(findings: Findings) -> dict[str, Any]:
    """Arguments with which highdicom states who made an object."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": PRODUCT,
        "software_versions": findings.software.get("mtmed3d", "unknown"),
        "device_serial_number": findings.model.sha256[:16],
    }


def coded(code: Code) -> Any:
    """As highdicom takes a code."""
    from highdicom.sr.coding import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def private(value: str, meaning: str) -> Any:
    """A concept of this program."""
    return coded(Code(value, SCHEME, meaning))


def to_lps(points_ras: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Points (..., 3) in RAS mm to DICOM's LPS mm."""
    return np.asarray(points_ras, dtype=np.float64) @ LPS


def algorithm_name(findings: Findings) -> str:
    """The model, as an algorithm is named: at most 64 characters."""
    return f"{PRODUCT} {findings.model.name}"[:64]
