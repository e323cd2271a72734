"""DICOM Segmentation: the label map as three disjoint segments on the T1ce series.

The label map is handed to highdicom as a volume with its own affine, so no flip or slice order can go wrong, whatever
the orientation. BINARY is what every reader understands; LABELMAP (DICOM supplement 243) is smaller and newer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports.dicom_source import (
    LPS,
    SERIES_NUMBERS,
    DicomSources,
    algorithm_name,
    coded,
    equipment,
)
from MTMed3DCore.exports.regions import BRAIN, MORPHOLOGICALLY_ALTERED, REGIONS
from MTMed3DCore.findings import Findings
from MTMed3DCore.geometry import Grid

if TYPE_CHECKING:
    from highdicom import Volume
    from highdicom.seg import Segmentation

KINDS = ("BINARY", "LABELMAP")
CREATOR = "MTMed3D^Automatic"


def write_dicom_seg(
    findings: Findings, path: Path, sources: DicomSources, kind: str = "BINARY", observer: str = ""
) -> Segmentation:
    """Write the segmentation.

    Args:
        findings: its labels lie on the T1ce grid.
        path: file to write.
        sources: the series that was analysed; patient and study are theirs.
        kind: of `KINDS`.
        observer: DICOM name of the reader, who is the creator where he corrected the regions; or empty.

    Returns:
        The object, which a structured report refers to.

    Raises:
        InputRefused: ``dicom-empty``, there is no voxel to write.
    """
    from highdicom.seg import Segmentation
    from highdicom.uid import UID

    if not findings.labels.any():
        raise InputRefused("dicom-empty", "There is no tumour, so there is no segmentation to write.")
    segments = np.zeros(findings.labels.shape, np.uint8)
    for number, region in enumerate(REGIONS, 1):
        segments[findings.labels == region.label] = number
    segmentation = Segmentation(
        source_images=list(sources.t1ce),
        pixel_array=to_highdicom(segments, findings.grid, sources.frame_uid),
        segmentation_type=kind,
        segment_descriptions=_descriptions(findings),
        series_instance_uid=UID(),
        series_number=SERIES_NUMBERS["SEG"],
        sop_instance_uid=UID(),
        instance_number=1,
        content_label="TUMOUR",
        content_description="Brain tumour regions, research use only",
        content_creator_name=observer if observer and findings.regions_by == "reader" else CREATOR,
        series_description="MTMed3D tumour regions (research use only)",
        further_source_images=list(sources.others) or None,
        **equipment(findings),
    )
    segmentation.save_as(path)
    return segmentation


def to_highdicom(array: np.ndarray[Any, Any], grid: Grid, frame_uid: str) -> Volume:
    """An array (X, Y, Z) on a grid in RAS mm as a highdicom volume, which counts slices first and lies in LPS mm."""
    from highdicom import Volume

    affine = np.eye(4)
    affine[:3, :3] = LPS @ grid.affine[:3, 2::-1]
    affine[:3, 3] = LPS @ grid.affine[:3, 3]
    return Volume(np.ascontiguousarray(array.transpose(2, 1, 0)), affine, "PATIENT", frame_of_reference_uid=frame_uid)


def _descriptions(findings: Findings) -> list[Any]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.uid import UID
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=algorithm_name(findings), version=findings.model.version, family=codes.DCM.ArtificialIntelligence
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=region.name,
            segmented_property_category=coded(MORPHOLOGICALLY_ALTERED),
            segmented_property_type=coded(region.type),
            algorithm_type="AUTOMATIC" if findings.regions_by == "model" else "SEMIAUTOMATIC",
            algorithm_identification=algorithm,
            anatomic_regions=[coded(BRAIN)],
            tracking_uid=UID(),
            tracking_id=region.name,
            display_color=CIELabColor.from_rgb(*region.color),
        )
        for number, region in enumerate(REGIONS, 1)
    ]
