"""A reviewed study in every form that a reader may want: training case, Slicer files, NIfTI, table, report."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.exports.atomic import publishing
from MTMed3DCore.exports.markups import write_markups
from MTMed3DCore.exports.nifti import write_nifti
from MTMed3DCore.exports.preview import write_preview
from MTMed3DCore.exports.report import write_report
from MTMed3DCore.exports.seg_nrrd import write_seg_nrrd
from MTMed3DCore.findings import REGION_LABELS, Findings, Grade, Lesion, Notice, volumes_ml
from MTMed3DCore.inference.lesions import longest_diameter_mm
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.reviewed import CASE_FILE, ReviewedCase, write_case_files
from MTMed3DCore.study import Study

FORMATS = ("training_case", "seg_nrrd", "nifti", "markups", "csv", "report")
_LAST = {
    "training_case": CASE_FILE,
    "seg_nrrd": "segmentation.seg.nrrd",
    "nifti": "segmentation.nii.gz",
    "csv": "measurements.csv",
    "report": "report.html",
    "markups": "boxes",
}
"""The file of each form that marks a complete export."""


def corrected_findings(case: ReviewedCase) -> Findings:
    """The findings that the reader leaves: accepted boxes, corrected regions, volumes measured anew.

    The score of a box that a reader drew or moved is 1; the grade's probability stays the model's.
    """
    study = Study.from_volumes(case.id, case.images, {name: Path(f"{name}.nii.gz") for name in case.images})
    grade = None
    if case.grade is not None:
        certain = 1.0 if case.grade == "HGG" else 0.0
        by_model = case.grade_by == "model" and case.probability_hgg is not None
        grade = Grade(case.grade, float(case.probability_hgg or 0.0) if by_model else certain)
    reviewed = Notice("reviewed", "A reader reviewed this result; see case.json for what was changed.")
    return Findings(
        study_id=case.id,
        sources={name: f"{name}.nii.gz" for name in case.images},
        grid=case.grid,
        labels=case.labels,
        lesions=tuple(_lesions(case)),
        grade=grade,
        model=case.model,
        warnings=(reviewed,),
        study=study,
        created=case.created,
    )


def _lesions(case: ReviewedCase) -> list[Lesion]:
    lesions = []
    for each in case.accepted_boxes:
        where = each.box.to_voxel(case.grid).slices(case.grid.shape)
        tumour = np.zeros(case.grid.shape, bool)
        tumour[where] = case.labels[where] > 0
        diameter = longest_diameter_mm(tumour, case.grid) if tumour.any() else float(np.linalg.norm(each.box.size))
        score = each.score if each.score is not None and each.state in ("proposed", "kept") else 1.0
        lesions.append(Lesion(each.id, score, each.box, volumes_ml(case.labels[where], case.grid), diameter))
    return lesions


def write_review(
    case: ReviewedCase,
    folder: Path,
    formats: Sequence[str],
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Path:
    """Write a reviewed study into a folder, which appears complete or not at all.

    Args:
        case: what to write.
        folder: a new or empty folder, or with `overwrite` one that an earlier export filled; a file of it that
            somebody edited since is never replaced.
        formats: some of `FORMATS`.
        progress: told of every form; where it raises, nothing is written.

    Returns:
        The folder.

    Raises:
        WrongUse: ``format-unknown``, and what `atomic.publishing` refuses.
    """
    strange = [name for name in formats if name not in FORMATS]
    if strange or not formats:
        what = f"There is no export format {strange[0]!r}." if strange else "No export format is chosen."
        raise WrongUse("format-unknown", what, f"Choose among {', '.join(FORMATS)}.")
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
        if "training_case" in formats:
            write_case_files(case, partial, lambda stage, done, text: progress(stage, 0.4 + 0.55 * done, text))
        progress("write", 0.95, "Putting the files in place")
    return folder


def write_measurements(case: ReviewedCase, findings: Findings, path: Path) -> None:
    """One row for the study and one for each box, rejected ones included; millilitres and millimetres."""
    regions = list(REGION_LABELS)
    measured = {lesion.id: lesion for lesion in findings.lesions}
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        heading = ["study", "lesion", "state", "score", "size_x_mm", "size_y_mm", "size_z_mm", "longest_diameter_mm"]
        writer.writerow([*heading, *(f"{name}_ml" for name in regions), "grade", "grade_by"])
        whole = [f"{findings.volumes_ml[name]:.3f}" for name in regions]
        writer.writerow([case.id, "all", "", "", "", "", "", "", *whole, case.grade or "", case.grade_by or ""])
        for each in case.boxes:
            size = [f"{side:.2f}" for side in each.box.size]
            lesion = measured.get(each.id)
            diameter = "" if lesion is None else f"{lesion.longest_diameter_mm:.2f}"
            volumes = ["" if lesion is None else f"{lesion.volumes_ml[name]:.3f}" for name in regions]
            score = "" if each.score is None else f"{each.score:.4f}"
            writer.writerow([case.id, each.id, each.state, score, *size, diameter, *volumes, "", ""])
