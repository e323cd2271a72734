"""A study in words and numbers, as the scene holds it now: the table of lesions and the grade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import vtk

from MTMed3DLib.attributes import LESION, PROBABILITY, READER_GRADE

if TYPE_CHECKING:
    from MTMed3DLib.nodes import Array
    from MTMed3DLib.scene import StudyScene

HEADINGS = ("lesion", "score", "state", "size mm", "whole tumour ml", "enhancing ml")


def lesion_rows(study: StudyScene, labels: Array | None = None) -> list[dict[str, str]]:
    """One row of texts a lesion: number, score, state, size, and the millilitres inside its box.

    Args:
        study: in the scene.
        labels: `StudyScene.labels`, where somebody has just read them.
    """
    from MTMed3DCore.findings import volumes_ml

    rows = []
    if labels is None and study.segmentation is not None:
        labels = study.labels()
    for roi in study.boxes():
        box, score = study.box(roi), study.score(roi)
        whole = enhancing = "-"
        if labels is not None:
            grid = study.grid
            inside = volumes_ml(labels[box.to_voxel(grid).slices(grid.shape)], grid)
            whole, enhancing = f"{inside['whole_tumour']:.1f}", f"{inside['enhancing']:.1f}"
        values = (
            str(roi.GetAttribute(LESION)),
            _score_in_words(score, roi.GetAttribute(PROBABILITY)),
            study.state(roi),
            " x ".join(f"{side:.0f}" for side in box.size),
            whole,
            enhancing,
        )
        rows.append(dict(zip(HEADINGS, values, strict=True)))
    return rows


def _score_in_words(score: float | None, probability: str | None) -> str:
    """The score and, where the model's scores are calibrated, the probability that it stands for."""
    if score is None:
        return "-"
    return f"{score:.2f}" if probability is None else f"{score:.2f} ({100 * float(probability):.0f} %)"


def lesion_table(study: StudyScene) -> Any:
    """The rows as a vtkTable."""
    rows, table = study.rows(), vtk.vtkTable()
    for heading in HEADINGS:
        column = vtk.vtkStringArray()
        column.SetName(heading)
        for row in rows:
            column.InsertNextValue(row[heading])
        table.AddColumn(column)
    return table


def grade_in_words(study: StudyScene) -> str:
    """The grade, the reader's first where there is one, and what it is not for."""
    from MTMed3DCore.findings import RESEARCH_USE

    findings = study.findings
    grade = None if findings is None else findings.grade
    model = "no grade" if grade is None else f"{grade.label}, probability of high grade {grade.probability_hgg:.2f}"
    by = "" if findings is None else f" ({findings.model.name} {findings.model.version})"
    node = study.grade_text
    reader = None if node is None else node.GetAttribute(READER_GRADE)
    lines = [f"Grade by the reader: {reader}"] if reader else []
    return "\n".join([*lines, f"Grade by the model: {model}{by}", RESEARCH_USE])
