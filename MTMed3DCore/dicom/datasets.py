"""What is taken from the header of one DICOM file, classic or enhanced multi-frame."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.dicom.series import Frame
from MTMed3DCore.recognition.header import SeriesHeader

KIND_NAMES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation object",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation object",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
    "1.2.840.10008.5.1.4.1.1.11.1": "presentation state",
    "1.2.840.10008.5.1.4.1.1.88.59": "key object note",
    "1.2.840.10008.5.1.4.1.1.104.1": "encapsulated PDF",
    "1.2.840.10008.5.1.4.1.1.4.2": "spectroscopy",
    "1.2.840.10008.5.1.4.1.1.7": "picture of the screen",
    "1.2.840.10008.5.1.4.1.1.481.3": "radiotherapy structures",
}
"""SOP classes that are set aside at once, by what a person calls them."""
_KINDS = frozenset(
    {"M", "P", "R", "I", "M_FFE", "P_FFE", "R_FFE", "I_FFE", "M_SE", "M_IR", "R_IR", "ADC", "TRACEW", "FA", "W", "F"}
)
"""Values of Image Type that divide a series: magnitude, phase, real, imaginary, maps, water and fat."""
_IMAGES = ("Rows", "Columns")


def kind_of(dataset: Any) -> str:
    """The SOP class."""
    return str(dataset.get("SOPClassUID", ""))


def is_image(dataset: Any) -> bool:
    """Whether the object holds slices of an examination."""
    return kind_of(dataset) not in KIND_NAMES and all(key in dataset for key in _IMAGES)


def patient_of(dataset: Any) -> tuple[str, ...]:
    """What tells patients apart: the identifier and its issuer, or name and birth date where there is none."""
    identifier = str(dataset.get("PatientID", "") or "").strip()
    if identifier:
        return ("id", identifier, str(dataset.get("IssuerOfPatientID", "") or "").strip())
    return ("name", str(dataset.get("PatientName", "") or ""), str(dataset.get("PatientBirthDate", "") or ""))


def header_of(dataset: Any) -> SeriesHeader:
    """The header record of a classic dataset, or of an enhanced one flattened by `_view`."""
    agent = str(dataset.get("ContrastBolusAgent", "") or "")
    if not agent and dataset.get("ContrastBolusAgentSequence"):
        agent = str(dataset.ContrastBolusAgentSequence[0].get("CodeMeaning", "") or "agent recorded")
    return SeriesHeader(
        patient_key=hashlib.sha256("\n".join(patient_of(dataset)).encode()).hexdigest()[:16],
        study_uid=str(dataset.get("StudyInstanceUID", "")),
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        frame_uid=str(dataset.get("FrameOfReferenceUID", "") or ""),
        number=_whole(dataset.get("SeriesNumber")),
        description=str(dataset.get("SeriesDescription", "") or "").strip(),
        protocol=str(dataset.get("ProtocolName", "") or "").strip(),
        modality=str(dataset.get("Modality", "") or ""),
        image_type=tuple(str(value).upper() for value in _several(dataset.get("ImageType"))),
        scanning_sequence=frozenset(str(value).upper() for value in _several(dataset.get("ScanningSequence"))),
        acquisition_type=str(dataset.get("MRAcquisitionType", "") or ""),
        te_ms=_number(dataset.get("EchoTime")),
        tr_ms=_number(dataset.get("RepetitionTime")),
        ti_ms=_number(dataset.get("InversionTime")),
        b_value=_number(dataset.get("DiffusionBValue")),
        contrast_agent=agent.strip(),
        body_part=str(dataset.get("BodyPartExamined", "") or "").strip().upper(),
        study_date=str(dataset.get("StudyDate", "") or ""),
        acquired=str(dataset.get("AcquisitionTime", "") or dataset.get("SeriesTime", "") or "").split(".")[0],
        manufacturer=str(dataset.get("Manufacturer", "") or ""),
    )


def frames_of(dataset: Any, path: Path) -> Iterator[tuple[tuple[Any, ...], Frame | None, SeriesHeader]]:
    """Each frame of a file with its group key and header; None for a frame without a place in space."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        header = header_of(dataset)
        frame = _frame(dataset, path, None)
        yield (_key(dataset, header, frame), frame, header)
        return
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for index, group in enumerate(groups):
        view = _view(dataset, shared[0] if shared else None, group)
        header = header_of(view)
        frame = _frame(view, path, index)
        yield (_key(view, header, frame), frame, header)


def _frame(dataset: Any, path: Path, index: int | None) -> Frame | None:
    position = dataset.get("ImagePositionPatient")
    orientation = dataset.get("ImageOrientationPatient")
    spacing = dataset.get("PixelSpacing")
    if not (position and orientation and spacing) or len(position) != 3 or len(orientation) != 6:
        return None
    axes = np.array(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    if not lengths.all() or min(map(float, spacing)) <= 0:
        return None
    return Frame(
        path=path,
        index=index,
        position=np.array(position, dtype=np.float64),
        orientation=axes / lengths,
        spacing=(float(spacing[0]), float(spacing[1])),
        shape=(int(dataset.get("Rows")), int(dataset.get("Columns"))),
        instance=_whole(dataset.get("InstanceNumber")) or 0,
        sop_uid=str(dataset.get("SOPInstanceUID", "")),
        slope=_number(dataset.get("RescaleSlope")) or 1.0,
        intercept=_number(dataset.get("RescaleIntercept")) or 0.0,
    )


def _key(dataset: Any, header: SeriesHeader, frame: Frame | None) -> tuple[Any, ...]:
    """Frames with equal keys make up one stack."""
    if frame is None:
        return ()
    kind = next((value for value in header.image_type[2:] if value in _KINDS), "")
    return (
        tuple((frame.orientation.round(3) + 0.0).ravel().tolist()),
        frame.shape,
        tuple(round(value, 4) for value in frame.spacing),
        kind,
        None if header.te_ms is None else round(header.te_ms),
        _whole(dataset.get("TemporalPositionIdentifier") or dataset.get("TemporalPositionIndex")),
        header.b_value,
    )


class _View(dict[str, Any]):
    """Attributes of one frame of an enhanced object under their classic names."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


# Where an enhanced object keeps what a classic one has at the top: macro, attribute, classic name.
_MACROS = (
    ("PlanePositionSequence", "ImagePositionPatient", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"),
    ("PixelValueTransformationSequence", "RescaleSlope", "RescaleSlope"),
    ("PixelValueTransformationSequence", "RescaleIntercept", "RescaleIntercept"),
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    ("MRTimingAndRelatedParametersSequence", "RepetitionTime", "RepetitionTime"),
    ("MRDiffusionSequence", "DiffusionBValue", "DiffusionBValue"),
    ("FrameContentSequence", "TemporalPositionIndex", "TemporalPositionIndex"),
    ("MRImageFrameTypeSequence", "FrameType", "ImageType"),
)


def _view(dataset: Any, shared: Any, group: Any) -> _View:
    names = ("ContrastBolusAgentSequence",)
    kept = {element.keyword: element.value for element in dataset if element.keyword and element.VR != "SQ"}
    view = _View({**kept, **{name: dataset.get(name) for name in names}})
    view.setdefault("AcquisitionTime", str(dataset.get("AcquisitionDateTime", ""))[8:14])
    for macro, attribute, name in _MACROS:
        item = _macro(shared, group, macro)
        if item is not None and item.get(attribute) is not None:
            view[name] = item.get(attribute)
    modifier = _macro(shared, group, "MRModifierSequence")
    if modifier is not None and modifier.get("InversionTimes") is not None:
        view["InversionTime"] = _several(modifier.InversionTimes)[0]
    view["ScanningSequence"] = _scanning(dataset, modifier)
    return view


def _scanning(dataset: Any, modifier: Any) -> list[str]:
    """Enhanced pulse sequence attributes as the classic codes."""
    echo = str(dataset.get("EchoPulseSequence", "") or "").upper()
    codes = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["GR", "SE"]}.get(echo, [])
    if str(dataset.get("EchoPlanarPulseSequence", "") or "").upper() == "YES":
        codes = [*codes, "EP"]
    if modifier is not None and str(modifier.get("InversionRecovery", "") or "").upper() == "YES":
        codes = [*codes, "IR"]
    return codes


def _macro(shared: Any, group: Any, name: str) -> Any | None:
    for place in (group, shared):
        items = place.get(name) if place is not None else None
        if items:
            return items[0]
    return None


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | int | float) or not hasattr(value, "__iter__") else list(value)


def _number(value: Any) -> float | None:
    value = next(iter(_several(value)), None)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
