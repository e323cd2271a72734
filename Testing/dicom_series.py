"""Writes volumes as DICOM series for tests, one file a slice or enhanced multi-frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

PARAMETERS: dict[str, dict[str, Any]] = {
    "t1": {"SeriesDescription": "AX T1 SE", "ScanningSequence": "SE", "EchoTime": 12, "RepetitionTime": 550},
    "t1ce": {
        "SeriesDescription": "AX T1 SE +C",
        "ScanningSequence": "SE",
        "EchoTime": 12,
        "RepetitionTime": 550,
        "ContrastBolusAgent": "Gadovist",
    },
    "t2": {"SeriesDescription": "AX T2 FSE", "ScanningSequence": "SE", "EchoTime": 98, "RepetitionTime": 4200},
    "flair": {
        "SeriesDescription": "AX T2 FLAIR",
        "ScanningSequence": ["SE", "IR"],
        "EchoTime": 125,
        "RepetitionTime": 9000,
        "InversionTime": 2250,
    },
}
"""What a scanner would record for each sequence."""


@dataclass
class Examination:
    """Identifiers that the series of one examination share."""

    patient_id: str = "P1"
    study_uid: str = field(default_factory=generate_uid)
    frame_uid: str = field(default_factory=generate_uid)
    date: str = "20240105"


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    examination: Examination,
    *,
    number: int = 1,
    positions: list[float] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write an integer volume (X, Y, Z) as one file a slice; returns the files, which are named in a muddled order.

    Args:
        folder: made if need be.
        array: columns, rows, slices.
        affine: voxel to RAS mm; any orientation.
        positions: slice index at which each slice of `array` lies; by default 0, 1, 2, ...
        tags: DICOM attributes that replace or add to the usual ones; None takes one away.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ np.asarray(affine, dtype=np.float64)
    series_uid = tags.pop("SeriesInstanceUID", generate_uid())
    files = []
    for index in range(array.shape[2]):
        place = index if positions is None else positions[index]
        dataset = _base(examination, series_uid, number, array, lps)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
        dataset.InstanceNumber = index + 1
        dataset.ImagePositionPatient = [float(f"{v:.10g}") for v in lps[:3, 3] + lps[:3, 2] * place]
        dataset.ImageOrientationPatient = _orientation(lps)
        dataset.PixelSpacing = _spacing(lps)
        dataset.SliceThickness = float(f"{np.linalg.norm(lps[:3, 2]):.10g}")
        dataset.PixelData = _stored(array[..., index].T).tobytes()
        files.append(_save(dataset, tags, folder / f"IM{(index * 7919) % 10007:05d}_{index}"))
    return files


def write_enhanced(
    folder: Path, array: np.ndarray, affine: np.ndarray, examination: Examination, *, number: int = 1, **tags: Any
) -> Path:
    """Write an integer volume (X, Y, Z) as one enhanced multi-frame file, frames in reverse order of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ np.asarray(affine, dtype=np.float64)
    dataset = _base(examination, generate_uid(), number, array, lps)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    dataset.InstanceNumber = 1
    dataset.NumberOfFrames = array.shape[2]
    timing, echo, modifier = Dataset(), Dataset(), Dataset()
    timing.RepetitionTime = tags.pop("RepetitionTime", None)
    echo.EffectiveEchoTime = tags.pop("EchoTime", None)
    sequence = tags.pop("ScanningSequence", "SE")
    dataset.EchoPulseSequence = "GRADIENT" if "GR" in sequence else "SPIN"
    modifier.InversionRecovery = "YES" if "IR" in sequence else "NO"
    inversion = tags.pop("InversionTime", None)
    if inversion is not None:
        modifier.InversionTimes = inversion
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _spacing(lps), float(np.linalg.norm(lps[:3, 2]))
    orientation.ImageOrientationPatient = _orientation(lps)
    shared = Dataset()
    shared.MRTimingAndRelatedParametersSequence, shared.MREchoSequence = [timing], [echo]
    shared.MRModifierSequence, shared.PixelMeasuresSequence = [modifier], [measures]
    shared.PlaneOrientationSequence = [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    order = list(range(array.shape[2]))[::-1]
    for index in order:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [float(f"{v:.10g}") for v in lps[:3, 3] + lps[:3, 2] * index]
        group.PlanePositionSequence = [position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.PixelData = b"".join(_stored(array[..., index].T).tobytes() for index in order)
    return _save(dataset, tags, folder / "enhanced.dcm")


def _base(examination: Examination, series_uid: str, number: int, array: np.ndarray, lps: np.ndarray) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = examination.study_uid, series_uid
    dataset.FrameOfReferenceUID = examination.frame_uid
    dataset.PatientID, dataset.PatientName = examination.patient_id, f"{examination.patient_id}^Generated"
    dataset.PatientBirthDate, dataset.PatientSex = "19600101", "O"
    dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", examination.date, "101500"
    dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.PositionReferenceIndicator = "A1", "", ""
    dataset.Modality, dataset.SeriesNumber, dataset.Manufacturer = "MR", number, "Generated"
    dataset.ImageType, dataset.MRAcquisitionType, dataset.BodyPartExamined = ["ORIGINAL", "PRIMARY", "M"], "2D", "BRAIN"
    dataset.SequenceVariant, dataset.ScanOptions, dataset.EchoTrainLength = "NONE", "", 1
    dataset.PatientPosition, dataset.ContentDate, dataset.ContentTime = "HFS", examination.date, "101500"
    dataset.SeriesDate, dataset.SeriesTime, dataset.Laterality = examination.date, "101500", ""
    dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    return dataset


def _save(dataset: Dataset, tags: dict[str, Any], path: Path) -> Path:
    for name, value in tags.items():
        if value is None:
            if name in dataset:
                delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


def _stored(plane: np.ndarray) -> np.ndarray:
    stored = np.ascontiguousarray(plane).astype(np.uint16)
    assert np.array_equal(stored, plane), "a test volume must hold integers from 0 to 65535"
    return stored


def _orientation(lps: np.ndarray) -> list[float]:
    axes = lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)
    return [float(f"{value:.12f}") for value in axes.T.ravel()]


def _spacing(lps: np.ndarray) -> list[float]:
    across, down = np.linalg.norm(lps[:3, :2], axis=0)
    return [float(f"{down:.10g}"), float(f"{across:.10g}")]


def scanner_order(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with right-handed axes, as scanners order slices: rows turned if need be."""
    return (array, affine) if np.linalg.det(affine[:3, :3]) > 0 else _rows_turned(array, affine)


def nifti_order(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with left-handed axes, as it is read from DICOM: rows turned if need be."""
    return (array, affine) if np.linalg.det(affine[:3, :3]) < 0 else _rows_turned(array, affine)


def _rows_turned(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    turn = np.diag([1.0, -1.0, 1.0, 1.0])
    turn[1, 3] = array.shape[1] - 1
    return array[:, ::-1], affine @ turn


def write_examination(folder: Path, volumes: dict[str, tuple[np.ndarray, np.ndarray]], *, distractors: bool) -> None:
    """A DICOM copy of a study: one series a sequence and, if asked, what else an examination holds.

    Args:
        folder: takes nested folders without speaking names, as an archive's export has them.
        volumes: integer array (X, Y, Z) and affine of each sequence.
        distractors: add a localiser, diffusion with its map, a reformatted and a subtracted T1ce, a T2*, a screen
            picture and a file that is no DICOM.
    """
    examination = Examination("STUDY-7")
    for number, name in enumerate(("t1", "t2", "flair", "t1ce"), 3):
        array, affine = scanner_order(*volumes[name])
        write_series(folder / f"DIR{number:03d}", array, affine, examination, number=number, **PARAMETERS[name])
    if not distractors:
        return
    array, affine = scanner_order(*volumes["t1ce"])
    small = (array[::4, ::4].copy(), affine @ np.diag([4.0, 4.0, 1.0, 1.0]))
    others: list[tuple[int, dict[str, Any]]] = [
        (1, {"SeriesDescription": "Localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (20, {"SeriesDescription": "DWI b1000", "ScanningSequence": "EP", "EchoTime": 80, "DiffusionBValue": 1000.0}),
        (21, {"SeriesDescription": "ADC", "ImageType": ["DERIVED", "PRIMARY", "ADC"]}),
        (22, {**PARAMETERS["t1ce"], "ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
        (23, {**PARAMETERS["t1ce"], "SeriesDescription": "T1 +C SUB", "ImageType": ["DERIVED", "SECONDARY"]}),
        (24, {"SeriesDescription": "AX T2* GRE", "ScanningSequence": "GR", "EchoTime": 20, "RepetitionTime": 600}),
        (25, {**PARAMETERS["t1ce"], "SeriesDescription": "SCREEN SAVE", "Modality": "OT"}),
    ]
    for number, tags in others:
        if number == 1:
            write_series(folder / "DIR001", small[0][..., :5], small[1], examination, number=1, **tags)
        else:
            write_series(folder / "more" / str(number), *small, examination, number=number, **tags)
    (folder / "VERSION").write_text("no DICOM")
