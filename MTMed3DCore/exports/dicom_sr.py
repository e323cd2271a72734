"""DICOM Structured Report after TID 1500: volumes, diameters, boxes, scores and grade.

One measurement group (TID 1411) a segment with its volume, one a lesion with its box as a closed surface of two
rectangles, and one (TID 1501) for the grade. Whole tumour and core are unions of segments and so are groups without a
segment of their own. What no standard has a code for is coded in the scheme ``99MTMED3D``; the grade is not coded as
histologic, because no tissue was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MTMed3DCore.exports.dicom_source import (
    MANUFACTURER,
    PRODUCT,
    SCHEME,
    SERIES_NUMBERS,
    DicomSources,
    algorithm_name,
    coded,
    equipment,
    private,
    to_lps,
)
from MTMed3DCore.exports.regions import BRAIN, REGIONS, Code
from MTMed3DCore.findings import RESEARCH_USE, Findings, Lesion
from MTMed3DCore.geometry import WorldBox

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

NEOPLASM = Code("108369006", "SCT", "Neoplasm")
PROCEDURE = Code("24590-2", "LN", "MR Brain")
DIAMETER_3D = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
GRADES = {"HGG": "High-grade glioma likely", "LGG": "Low-grade glioma likely"}
DECIDED = ("decided-by", "Decided by")
READER = {
    "kept": ("reader-kept", "Reader, who kept it as the model proposed it"),
    "edited": ("reader-edited", "Reader, who moved or resized it"),
    "added": ("reader-added", "Reader, who added it"),
    "corrected": ("reader-corrected", "Reader, who corrected the segmentation"),
    "set": ("reader-set", "Reader, who set the grade"),
}
"""What a reader did, as code and meaning."""
DRAWN = ("edited", "added", "set")
"""What is the reader's own, and no algorithm's."""
UNIONS = {"whole_tumour": "Whole tumour", "tumour_core": "Tumour core"}
SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}


def write_dicom_sr(
    findings: Findings,
    path: Path,
    sources: DicomSources,
    segmentation: Segmentation | None = None,
    observer: str = "",
    states: Mapping[int, str] | None = None,
) -> None:
    """Write the report.

    Args:
        findings: what was found.
        path: file to write.
        sources: the series that was analysed; patient and study are theirs.
        segmentation: the object that `dicom_seg` wrote of the same findings, referred to segment by segment.
        observer: DICOM name (``Family^Given``) of the reader who reviewed the findings, or empty.
        states: by the number of a lesion what a reader made of its box: ``kept``, ``edited`` or ``added``. Whatever a
            reader decided says so (regions and grade by the findings themselves), and what he drew is ascribed to no
            algorithm.
    """
    from highdicom.sr import Comprehensive3DSR, MeasurementReport
    from highdicom.uid import UID
    from pydicom.sr.codedict import codes

    groups = [
        *(_segments(findings, segmentation) if segmentation is not None else []),
        *(_union(findings, key, name) for key, name in UNIONS.items()),
        *(_lesion(findings, lesion, sources, (states or {}).get(lesion.id, "")) for lesion in findings.lesions),
        *([_grade(findings)] if findings.grade is not None else []),
    ]
    report = MeasurementReport(
        observation_context=_context(findings, observer),
        procedure_reported=coded(PROCEDURE),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=list(sources.t1ce),
    )
    made_by = equipment(findings)
    made_by.pop("manufacturer")
    document = Comprehensive3DSR(
        evidence=[*sources.all, *([segmentation] if segmentation is not None else [])],
        content=report,
        series_instance_uid=UID(),
        series_number=SERIES_NUMBERS["SR"],
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_verified=False,
        series_description=f"MTMed3D measurements ({RESEARCH_USE.split('.')[0].lower()})",
    )
    document.ManufacturerModelName = made_by["manufacturer_model_name"]
    document.SoftwareVersions = made_by["software_versions"]
    document.DeviceSerialNumber = made_by["device_serial_number"]
    document.save_as(path)


def _context(findings: Findings, observer: str) -> Any:
    from highdicom import sr
    from highdicom.uid import UID
    from pydicom.sr.codedict import codes

    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            uid=UID(),
            name=PRODUCT,
            manufacturer_name=MANUFACTURER,
            model_name=algorithm_name(findings),
            serial_number=findings.model.sha256[:16],
        ),
    )
    if not observer:
        return sr.ObservationContext(observer_device_context=device)
    person = sr.ObserverContext(codes.DCM.Person, sr.PersonObserverIdentifyingAttributes(name=observer))
    return sr.ObservationContext(observer_person_context=person, observer_device_context=device)


def _measured(findings: Findings, name: Any, value: float, unit: Any) -> Any:
    from highdicom.sr import Measurement

    return Measurement(name=name, value=round(float(value), 4), unit=unit, algorithm_id=_algorithm(findings))


def _volume(findings: Findings, millilitres: float) -> Any:
    from pydicom.sr.codedict import codes

    return _measured(findings, codes.SCT.Volume, millilitres * 1000, codes.UCUM.CubicMillimeter)


def _algorithm(findings: Findings) -> Any:
    from highdicom.sr import AlgorithmIdentification

    return AlgorithmIdentification(name=algorithm_name(findings), version=findings.model.version)


def _common(findings: Findings, identifier: str, side: str = "", state: str = "") -> dict[str, Any]:
    """What every group states.

    Args:
        findings: of the study.
        identifier: of the group.
        side: of the brain, or empty.
        state: what a reader made of it, empty where he decided nothing.
    """
    from highdicom import sr
    from highdicom.uid import UID

    laterality = coded(SIDES[side]) if side in SIDES else None
    decided = [sr.QualitativeEvaluation(private(*DECIDED), private(*READER[state]))] if state else None
    return {
        "tracking_identifier": sr.TrackingIdentifier(uid=UID(), identifier=identifier),
        "finding_sites": [sr.FindingSite(anatomic_location=coded(BRAIN), laterality=laterality)],
        "algorithm_id": None if state in DRAWN else _algorithm(findings),
        "qualitative_evaluations": decided,
    }


def _regions_state(findings: Findings) -> str:
    return "corrected" if findings.regions_by == "reader" else ""


def _segments(findings: Findings, segmentation: Segmentation) -> list[Any]:
    from highdicom import sr

    groups = []
    for number, region in enumerate(REGIONS, 1):
        if not (findings.labels == region.label).any():
            continue
        group = sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            **_common(findings, region.name, state=_regions_state(findings)),
            referenced_segment=sr.ReferencedSegment.from_segmentation(segmentation, segment_number=number),
            finding_type=coded(region.type),
            measurements=[_volume(findings, findings.volumes_ml[region.key])],
        )
        groups.append(group)
    return groups


def _union(findings: Findings, key: str, name: str) -> Any:
    from highdicom import sr

    finding = coded(NEOPLASM) if key == "whole_tumour" else private(key, name)
    return sr.MeasurementsAndQualitativeEvaluations(
        **_common(findings, name, state=_regions_state(findings)),
        finding_type=finding,
        measurements=[_volume(findings, findings.volumes_ml[key])],
    )


def _lesion(findings: Findings, lesion: Lesion, sources: DicomSources, state: str) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    millimetre, one = codes.UCUM.Millimeter, codes.UCUM.NoUnits
    measurements = [
        _volume(findings, lesion.volumes_ml.get("whole_tumour", 0.0)),
        _measured(findings, coded(DIAMETER_3D), lesion.longest_diameter_mm, millimetre),
    ]
    if state not in DRAWN:
        score = _measured(findings, private("detection-score", "Detection score"), lesion.score, one)
        measurements.append(score)
    if lesion.rano is not None:
        measurements += [
            _measured(findings, codes.SCT.LongAxis, lesion.rano["longest_mm"], millimetre),
            _measured(findings, codes.SCT.ShortAxis, lesion.rano["perpendicular_mm"], millimetre),
        ]
    side = str((getattr(lesion, "laterality", None) or {}).get("side", ""))
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        **_common(findings, f"Lesion {lesion.id}", side, state),
        referenced_volume_surface=sr.VolumeSurface(
            graphic_type="POLYGON",
            graphic_data=box_faces(lesion.box),
            frame_of_reference_uid=sources.frame_uid,
            source_images=[sr.SourceImageForSegmentation.from_source_image(d) for d in sources.t1ce],
        ),
        finding_type=coded(NEOPLASM),
        measurements=measurements,
    )


def _grade(findings: Findings) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    grade = findings.grade
    assert grade is not None
    reader = grade.by == "reader"
    stated = _common(findings, "Grade", state="set" if reader else "")
    name = private("imaging-grade", "Imaging-based likelihood of grade, not histologic")
    said = sr.QualitativeEvaluation(name, coded(Code(grade.label, SCHEME, GRADES[grade.label])))
    decided = stated.pop("qualitative_evaluations") or []
    probability = private("probability-hgg", "Probability of high grade")
    return sr.MeasurementsAndQualitativeEvaluations(
        **stated,
        finding_type=coded(NEOPLASM),
        # The model's probability is no measurement of a grade that a reader set.
        measurements=None if reader else [_measured(findings, probability, grade.probability_hgg, codes.UCUM.NoUnits)],
        qualitative_evaluations=[said, *decided],
    )


def box_faces(box: WorldBox) -> list[np.ndarray[Any, Any]]:
    """The two faces of a box across its third axis as closed rectangles (5, 3), LPS mm."""
    corners = box.corners().reshape(2, 2, 2, 3)  # by sign along the box's three axes
    ring = ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
    return [to_lps([corners[i, j, face] for i, j in ring]) for face in (0, 1)]
