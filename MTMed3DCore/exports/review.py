"""A reviewed study in every form that a reader may want: training case, Slicer files, NIfTI, table, report."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.exports.atomic import publishing
from MTMed3DCore.exports.deidentify import check_pseudonym, deidentified_sources
from MTMed3DCore.exports.dicom import MEASUREMENTS, check_dicom_export, write_dicom
from MTMed3DCore.exports.dicom_source import read_sources, refuse_elsewhere
from MTMed3DCore.exports.markups import write_markups
from MTMed3DCore.exports.nifti import write_nifti
from MTMed3DCore.exports.preview import write_preview
from MTMed3DCore.exports.report import write_report
from MTMed3DCore.exports.report_pdf import write_report_pdf
from MTMed3DCore.exports.seg_nrrd import write_seg_nrrd
from MTMed3DCore.findings import REGION_LABELS, Findings, Grade, Lesion, volumes_ml
from MTMed3DCore.geometry import FloatArray
from MTMed3DCore.measurements import compare_again, measure_region, midplane, sum_of_products
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation.brain import find_stripped_brain, head_instead_of_brain
from MTMed3DCore.preparation.record import document_record
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.reviewed import CASE_FILE, ReviewedCase, write_case_files
from MTMed3DCore.study import Study

FORMATS = ("training_case", "seg_nrrd", "nifti", "markups", "csv", "report", "dicom")
DICOM, REPORT_PDF = "dicom", "report.pdf"
BEFORE_REVIEW = (
    "region-without-box",
    "box-without-region",
    "boxes-from-regions",
    "brightness-left-out",
    "unboxed-left-out",
)
"""Warnings of an analysis that a review of its boxes and regions answers."""
_LAST = {
    "training_case": CASE_FILE,
    "seg_nrrd": "segmentation.seg.nrrd",
    "nifti": "segmentation.nii.gz",
    "csv": "measurements.csv",
    "report": "report.html",
    "markups": "boxes",
    "dicom": f"{DICOM}/{MEASUREMENTS}",
}
"""The file of each form that marks a complete export."""


def corrected_findings(case: ReviewedCase) -> Findings:
    """The findings that the reader leaves: accepted boxes, corrected regions, everything measured anew on them.

    The score of a box that a reader drew or moved is 1. Preparation, warnings and the comparison with a prior study
    come from the result that was reviewed, the comparison with its current values measured anew; warnings of how boxes
    and regions agreed before the review are left out.
    """
    study = Study.from_volumes(case.id, case.images, {name: Path(f"{name}.nii.gz") for name in case.images})
    document = case.findings or {}
    preparation = document.get("preparation")
    warnings = [Notice(**each) for each in document.get("warnings", ()) if each["code"] not in BEFORE_REVIEW]
    reviewed = Notice("reviewed", "A reader reviewed this result; see case.json for what was changed.")
    findings = Findings(
        study_id=case.id,
        sources={name: f"{name}.nii.gz" for name in case.images},
        grid=case.grid,
        labels=case.labels,
        lesions=tuple(_lesions(case)),
        grade=_grade(case, document),
        model=case.model,
        warnings=(reviewed, *warnings),
        software=document.get("software", {}),
        study=study,
        created=case.created,
        preparation=None if preparation is None else document_record(preparation, case.grid, case.brain),
        regions_by=case.regions_by,
    )
    comparison = document.get("comparison")
    return findings if comparison is None else replace(findings, comparison=compare_again(comparison, findings))


def _grade(case: ReviewedCase, document: Mapping[str, Any]) -> Grade | None:
    """The reader's grade beside the model's probability, or the model's."""
    if case.grade is None:
        return None
    certain = 1.0 if case.grade == "HGG" else 0.0
    probability = certain if case.probability_hgg is None else float(case.probability_hgg)
    calibration = (document.get("grade") or {}).get("calibration")
    return Grade(case.grade, probability, "reader" if case.grade_by == "reader" else "model", calibration)


def _lesions(case: ReviewedCase) -> list[Lesion]:
    """Every accepted box with what is measured on the tumour inside it."""
    plane = _midplane(case)
    lesions = []
    for each in case.accepted_boxes:
        where = each.box.to_voxel(case.grid).slices(case.grid.shape)
        tumour = np.zeros(case.grid.shape, bool)
        tumour[where] = case.labels[where] > 0
        score = each.score if each.score is not None and each.state in ("proposed", "kept") else 1.0
        if tumour.any():
            measured = measure_region(tumour, case.labels, case.grid, plane)
        else:
            measured = {"volumes_ml": volumes_ml(case.labels[:0], case.grid)}
            measured["longest_diameter_mm"] = float(np.linalg.norm(each.box.size))
        lesions.append(Lesion(each.id, score, each.box, **measured))
    return lesions


def _midplane(case: ReviewedCase) -> FloatArray | None:
    """Between the hemispheres: by the brain mask of the analysis, else by the brain or head that the T1ce shows."""
    t1ce = case.images["t1ce"].array
    try:
        brain = case.brain
        if brain is None:
            stripped = find_stripped_brain({"t1ce": t1ce}, case.grid)
            brain = head_instead_of_brain(t1ce, case.grid)[0] if stripped is None else stripped.mask
    except InputRefused:  # a blank T1ce has no sides
        return None
    return midplane(brain, case.grid) if brain.any() else None


def write_review(
    case: ReviewedCase,
    folder: Path,
    formats: Sequence[str],
    *,
    overwrite: bool = False,
    progress: Progress = silent,
    series: Mapping[str, Sequence[Path]] | None = None,
    observer: str = "",
    deidentify: bool = False,
) -> Path:
    """Write a reviewed study into a folder, which appears complete or not at all.

    Args:
        case: what to write.
        folder: a new or empty folder, or with `overwrite` one that an earlier export filled; a file of it that
            somebody edited since is never replaced.
        formats: some of `FORMATS`.
        progress: told of every form; where it raises, nothing is written.
        series: DICOM files of each sequence, to which DICOM objects refer; only for ``dicom``.
        observer: DICOM name (``Family^Given``) of the reader, or empty; only for ``dicom``.
        deidentify: leave out what may name the patient: the comment, and in DICOM all that `exports.deidentify` does
            not keep. The case's name stands for the patient.

    Returns:
        The folder.

    Raises:
        WrongUse: ``format-unknown``, ``dicom-support``, ``pseudonym``, and what `atomic.publishing` refuses.
        InputRefused: ``dicom-source`` or ``dicom-elsewhere``, DICOM objects could not say where the result lies.
    """
    strange = [name for name in formats if name not in FORMATS]
    if strange or not formats:
        what = f"There is no export format {strange[0]!r}." if strange else "No export format is chosen."
        raise WrongUse("format-unknown", what, f"Choose among {', '.join(FORMATS)}.")
    if deidentify:
        check_pseudonym(case.id)
        case = replace(case, comment="")
    sources = None
    if "dicom" in formats:
        check_dicom_export()
        sources = read_sources(series or {})
        refuse_elsewhere(sources, case.grid)
        if deidentify:
            sources = deidentified_sources(sources, case.id)
    progress("write", 0.0, "Measuring the lesions")
    findings = corrected_findings(case)
    last = next(_LAST[name] for name in _LAST if name in formats)
    with publishing(folder, overwrite=overwrite, last=last) as partial:
        progress("write", 0.1, "Writing regions, boxes and the table")
        if "seg_nrrd" in formats:
            write_seg_nrrd(findings, partial / "segmentation.seg.nrrd")
        if "nifti" in formats:
            write_nifti(findings, partial / "segmentation.nii.gz")
        if "markups" in formats:
            (partial / "boxes").mkdir()
            for lesion in findings.lesions:
                write_markups(lesion, partial / "boxes" / f"lesion-{lesion.id}.mrk.json")
        if "csv" in formats:
            write_measurements(case, findings, partial / "measurements.csv")
        if "report" in formats:
            progress("write", 0.2, "Drawing the report")
            write_preview(findings, partial / "preview.png")
            write_report(findings, partial / "report.html", partial / "preview.png")
            write_report_pdf(findings, partial / REPORT_PDF)
        if sources is not None:
            progress("write", 0.35, "Writing the DICOM objects")
            states = {each.id: each.state for each in case.accepted_boxes if each.by == "reader"}
            pdf = _pdf(findings, partial / REPORT_PDF)
            write_dicom(findings, partial / DICOM, pdf=pdf, sources=sources, observer=observer, states=states)
        if "training_case" in formats:
            write_case_files(case, partial, lambda stage, done, text: progress(stage, 0.4 + 0.55 * done, text))
        progress("write", 0.95, "Putting the files in place")
    return folder


def _pdf(findings: Findings, path: Path) -> bytes:
    """The report as PDF, taken from a file that is there already or is not to stay."""
    if path.is_file():
        return path.read_bytes()
    write_report_pdf(findings, path)
    content = path.read_bytes()
    path.unlink()
    return content


def write_measurements(case: ReviewedCase, findings: Findings, path: Path) -> None:
    """One row for the study and one for each box, rejected ones included; millilitres, millimetres, mm2 of products."""
    regions = list(REGION_LABELS)
    measured = {lesion.id: lesion for lesion in findings.lesions}
    columns = ["study", "lesion", "state", "score", "size_x_mm", "size_y_mm", "size_z_mm", "longest_diameter_mm",
               *(f"{name}_ml" for name in regions), "grade", "grade_by",
               "rano_longest_mm", "rano_perpendicular_mm", "rano_product_mm2", "rano_measurable", "side"]  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        whole = {f"{name}_ml": f"{findings.volumes_ml[name]:.3f}" for name in regions}
        products = sum_of_products(lesion.rano for lesion in findings.lesions)
        study = {"study": case.id, "lesion": "all", "grade": case.grade or "", "grade_by": case.grade_by or ""}
        writer.writerow({**study, **whole, "rano_product_mm2": f"{products:.1f}"})
        for each in case.boxes:
            size = {f"size_{axis}_mm": f"{side:.2f}" for axis, side in zip("xyz", each.box.size, strict=True)}
            score = "" if each.score is None else f"{each.score:.4f}"
            row = {"study": case.id, "lesion": each.id, "state": each.state, "score": score, **size}
            lesion = measured.get(each.id)
            writer.writerow(row if lesion is None else {**row, **_measured_cells(lesion)})


def _measured_cells(lesion: Lesion) -> dict[str, str]:
    cells = {f"{name}_ml": f"{lesion.volumes_ml[name]:.3f}" for name in REGION_LABELS}
    cells["longest_diameter_mm"] = f"{lesion.longest_diameter_mm:.2f}"
    if lesion.rano is not None:
        for name in ("longest_mm", "perpendicular_mm", "product_mm2"):
            cells[f"rano_{name}"] = f"{lesion.rano[name]:.2f}"
        cells["rano_measurable"] = "yes" if lesion.rano["measurable"] else "no"
    if lesion.laterality is not None:
        cells["side"] = str(lesion.laterality["side"])
    return cells
