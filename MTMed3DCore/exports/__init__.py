"""Everything that is written about one study, one writer a file, and the way back.

==========================  =============================================================================
``findings.json``           schema ``mtmed3d.findings/1``; the last file to be written
``segmentation.nii.gz``     1 necrotic core, 2 oedema, 4 enhancing, on the T1ce grid as it came in
``segmentation.seg.nrrd``   the same voxels with names, colours and terminology, for 3D Slicer
``boxes/lesion-N.mrk.json`` one oriented box a lesion, for 3D Slicer
``preview.png``             three planes through every lesion
``preparation/``            transforms, brain mask and figures of the preparation, to inspect and use again
``report.html``             one self-contained page
``report.pdf``              the same on pages
``dicom/``                  on request: segmentation.dcm, measurements.dcm and report.dcm, see `exports.dicom`
``.mtmed3d.json``           SHA-256 of each of the above as written, so that edits are noticed
==========================  =============================================================================
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports.atomic import edited_files, publishing
from MTMed3DCore.exports.dicom import write_dicom
from MTMed3DCore.exports.json_file import document_findings, document_grid, read_document, write_json
from MTMed3DCore.exports.markups import write_markups
from MTMed3DCore.exports.nifti import read_nifti, write_nifti
from MTMed3DCore.exports.preview import write_preview
from MTMed3DCore.exports.report import write_report
from MTMed3DCore.exports.report_pdf import write_report_pdf
from MTMed3DCore.exports.seg_nrrd import write_seg_nrrd
from MTMed3DCore.findings import REGION_LABELS, Findings
from MTMed3DCore.preparation.record import MASK, read_mask, write_preparation
from MTMed3DCore.progress import Progress, silent

__all__ = ["edited_files", "read_findings", "write_findings"]

FINDINGS = "findings.json"
SEGMENTATION = "segmentation.nii.gz"
SLICER_SEGMENTATION = "segmentation.seg.nrrd"
BOXES = "boxes"
PREVIEW = "preview.png"
REPORT = "report.html"
REPORT_PDF = "report.pdf"
PREPARATION = "preparation"
DICOM = "dicom"


def write_findings(
    findings: Findings,
    folder: str | Path,
    *,
    overwrite: bool = False,
    dicom: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Write every export of one study into a folder, which appears complete or not at all.

    The seconds that writing took are added to ``timing_s`` of ``findings.json`` as ``write`` and to its ``total``.

    Args:
        findings: what to write.
        folder: a new or empty folder; with `overwrite` any folder.
        overwrite: replace an earlier result in the folder. Files that are not ours stay as they are, and a file of
            ours that somebody edited since is never replaced: the whole write is refused instead.
        dicom: ``"BINARY"`` or ``"LABELMAP"`` adds DICOM objects; the study must have come as DICOM.
        progress: told of every file, stage ``write``.

    Returns:
        Path of ``findings.json``.

    Raises:
        WrongUse, OutOfResources: the folder cannot take the files, see `atomic.publishing`.
        InputRefused: ``findings-invalid`` or ``labels-invalid``, the findings contradict their own contract;
            ``dicom-source``, see `exports.dicom.write_dicom`.
    """
    started = perf_counter()
    target = Path(folder)
    _check_labels(findings)
    with publishing(target, overwrite=overwrite, last=FINDINGS) as partial:
        progress("write", 0.0, "Writing the segmentation")
        write_nifti(findings, partial / SEGMENTATION)
        write_seg_nrrd(findings, partial / SLICER_SEGMENTATION)
        progress("write", 0.4, "Writing the boxes")
        (partial / BOXES).mkdir()
        for lesion in findings.lesions:
            write_markups(lesion, partial / BOXES / f"lesion-{lesion.id}.mrk.json")
        progress("write", 0.5, "Drawing the preview")
        write_preview(findings, partial / PREVIEW)
        progress("write", 0.9, "Writing the report")
        write_report(findings, partial / REPORT, partial / PREVIEW)
        write_report_pdf(findings, partial / REPORT_PDF)
        if findings.preparation is not None and findings.preparation.brain is not None:
            write_preparation(findings.preparation, partial / PREPARATION)
        if dicom is not None:
            progress("write", 0.95, "Writing the DICOM objects")
            write_dicom(findings, partial / DICOM, dicom, pdf=(partial / REPORT_PDF).read_bytes())
        write_json(findings, partial / FINDINGS, _timing(findings, perf_counter() - started))
    progress("write", 1.0, "Written")
    return target / FINDINGS


def read_findings(folder: str | Path) -> Findings:
    """Read what `write_findings` wrote, with segmentation and brain mask as they are now, edits of a reader included.

    The figures of the preparation are those of the analysis; without its folder the mask is missing, not they.

    Args:
        folder: an output folder or the ``findings.json`` in it.

    Raises:
        InputRefused: ``findings-missing``, ``findings-invalid``, ``segmentation-unreadable``, ``segmentation-grid``,
            ``labels-invalid``, or what `read_mask` refuses.
    """
    path = Path(folder)
    path = path / FINDINGS if path.is_dir() else path
    document = read_document(path)
    try:
        grid = document_grid(document)
        document_findings(document, np.zeros(grid.shape, np.uint8))
    except (ValueError, TypeError, OverflowError, MemoryError) as error:  # what a schema cannot say of numbers
        text = f"{path} holds a grid, a box or a date that cannot be: {error}."
        raise InputRefused("findings-invalid", text, "Restore the file or analyse the study again.") from error
    mask = path.parent / PREPARATION / MASK
    brain = read_mask(mask, grid) if "preparation" in document and mask.is_file() else None
    findings = document_findings(document, read_nifti(path.parent / SEGMENTATION, grid), brain)
    _check_labels(findings)
    return findings


def _timing(findings: Findings, write_s: float) -> dict[str, float]:
    earlier = dict(findings.timing_s)
    before = earlier.pop("write", 0.0)
    total = earlier.pop("total", None)
    total = sum(earlier.values()) if total is None else total - before
    return {**earlier, "write": round(write_s, 3), "total": round(total + write_s, 3)}


def _check_labels(findings: Findings) -> None:
    labels, shape = findings.labels, findings.grid.shape
    if labels.dtype != np.uint8 or labels.shape != shape:
        text = f"The label map is {labels.dtype} {labels.shape}; it must be uint8 on the T1ce grid, {shape}."
        raise InputRefused("labels-invalid", text, "Bring the label map onto the grid of the T1ce volume.")
    strangers = np.setdiff1d(np.unique(labels), (0, *REGION_LABELS["whole_tumour"]))
    if strangers.size:
        text = f"The label map holds the values {strangers.tolist()}; it may hold 0, 1, 2 and 4."
        raise InputRefused("labels-invalid", text, "Map the labels to 1 necrotic core, 2 oedema, 4 enhancing.")
