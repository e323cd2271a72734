"""From the scene to a reviewed case on disk, and back.

What touches nodes and what touches files is apart: `reviewed_case` copies everything out of the scene, and `write_case`
may then work on another thread while the reader goes on; `read_reviewed_case` of the core reads on another thread, and
`show_reviewed` brings it into the scene step by step.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk

from MTMed3DLib import regions
from MTMed3DLib.attributes import (
    COMMENT,
    DIFFICULTY,
    FINDINGS,
    GRADE_WHEN,
    LESION,
    READER_GRADE,
    REJECTED,
    SEGMENTATION,
    VERDICT,
    WHEN,
)
from MTMed3DLib.background import Report
from MTMed3DLib.brain import voxels_of_mask
from MTMed3DLib.inputs import NAMES, SEQUENCES
from MTMed3DLib.nodes import box_of, ijk_to_ras, mark_decided, matrix_of, remove_node, tag, to_frame_of, voxels_of
from MTMed3DLib.review import Review
from MTMed3DLib.scene import StudyScene

if TYPE_CHECKING:
    from MTMed3DCore.reviewed import ReviewedCase
    from MTMed3DCore.volume import Volume

MODEL = "model"
READER = "reader"


def export_review(review: Review, folder: Path, formats: Sequence[str], *, overwrite: bool = False) -> Path:
    """Write what the reader leaves of a study.

    Args:
        review: of a study whose four volumes are still in the scene.
        folder: a new or empty folder; with `overwrite` one that an earlier export filled.
        formats: some of ``MTMed3DCore.exports.review.FORMATS``.

    Returns:
        The folder.

    Raises:
        ValueError: a volume or the regions are gone from the scene.
        MTMed3DCore.errors.WrongUse: the folder is not empty, or a format is unknown.
    """
    return write_case(reviewed_case(review), folder, formats, overwrite=overwrite)


def write_case(
    case: ReviewedCase,
    folder: Path,
    formats: Sequence[str],
    report: Report = lambda *_: None,
    *,
    overwrite: bool = False,
    series: Mapping[str, Sequence[Path]] | None = None,
    observer: str = "",
    deidentify: bool = False,
) -> Path:
    """Write what `reviewed_case` copied; touches no node. See `export_review`.

    Args:
        case: the copies.
        folder, formats, overwrite: as in `export_review`.
        report: told of every step.
        series: DICOM files of each sequence, which DICOM objects refer to; see `dicom_series.files_of`.
        observer: DICOM name of the reader, or empty.
        deidentify: leave out what may name the patient.
    """
    from MTMed3DCore.exports.review import write_review
    from MTMed3DCore.volume import Volume

    report("write", 0.0, "Copying the volumes")
    images = {n: Volume(np.asarray(v.array, dtype=np.float32), v.grid) for n, v in case.images.items()}
    return write_review(
        replace(case, images=images),
        folder,
        formats,
        overwrite=overwrite,
        progress=report,
        series=series,
        observer=observer,
        deidentify=deidentify,
    )


def reviewed_case(review: Review) -> ReviewedCase:
    """The study as the scene shows it now: copies, which no later edit changes. Voxels keep the type of their node.

    Raises:
        ValueError: a volume or the regions are gone from the scene.
    """
    from MTMed3DCore.findings import ModelIdentity
    from MTMed3DCore.reviewed import ReviewedBox, ReviewedCase

    study = review.study
    volumes = study.volumes()
    gone = [NAMES[name] for name in SEQUENCES if volumes[name] is None]
    if gone or study.segmentation is None:
        what = ", ".join([*gone, *([] if study.segmentation is not None else ["the regions"])])
        raise ValueError(f"{what} is no longer in the scene. Load it again and analyse, then export.")
    review.finish_edit()
    edited, node = study.regions_edited, study.segmentation
    if edited and not review.decided_at(node):
        mark_decided(node)  # drawn by hand in the Segment Editor, which leaves no time
    findings, document = study.findings, study.findings_document
    model_grade = None if findings is None else findings.grade
    by_reader = review.grade is not None
    grade = review.grade if by_reader else None if model_grade is None else model_grade.label
    return ReviewedCase(
        id=study.study_id,
        images={name: volume_of(node, volumes["t1ce"]) for name, node in volumes.items()},
        labels=study.labels(),
        boxes=tuple(
            ReviewedBox(
                int(roi.GetAttribute(LESION)),
                box_of(roi, volumes["t1ce"]),
                study.state(roi),
                study.score(roi),
                review.decided_at(roi),
            )
            for roi in study.boxes()
        ),
        grade=grade,
        grade_by=READER if by_reader else None if grade is None else MODEL,
        probability_hgg=None if model_grade is None else model_grade.probability_hgg,
        grade_decided=study.grade_text.GetAttribute(GRADE_WHEN) or "" if by_reader else "",
        regions_by=READER if edited else MODEL,
        regions_decided=review.decided_at(node) if edited else "",
        verdict=review.verdict,
        difficulty=review.difficulty,
        comment=review.comment,
        model=ModelIdentity("none", "0", "", "") if findings is None else findings.model,
        findings=document,
        brain=None if study.brain is None else voxels_of_mask(study.brain, volumes["t1ce"]),
    )


def volume_of(node: Any, t1ce: Any) -> Volume:
    """A copy of a volume node as the core has it, in the frame of T1ce."""
    from MTMed3DCore.geometry import Grid
    from MTMed3DCore.volume import Volume

    array = np.array(voxels_of(node.GetImageData()))
    return Volume(array, Grid(array.shape, to_frame_of(node, t1ce) @ ijk_to_ras(node)))


def open_reviewed(scene: Any, folder: Path) -> StudyScene:
    """Bring an exported case back into a scene, with everything that the reader had decided.

    See `show_reviewed`.

    Raises:
        MTMed3DCore.errors.InputRefused: no case, or a damaged one.
    """
    from MTMed3DCore.reviewed import read_reviewed_case

    study = StudyScene(scene, "")
    for shown in show_reviewed(scene, read_reviewed_case(folder)):
        study = shown
    return study


def show_reviewed(scene: Any, case: ReviewedCase) -> Generator[StudyScene]:
    """Bring a case into a scene in steps of a moment each, between which an application can go on.

    A study of the same name that is in the scene already keeps its place; this one gets a number behind its name.
    Whoever closes the generator before its end leaves nothing of the case in the scene.

    Yields:
        The study, which is whole after the last step.
    """
    taken = {study.study_id for study in StudyScene.find(scene)}
    name, number = case.id, 2
    while name in taken:
        name, number = f"{case.id} {number}", number + 1
    study = StudyScene(scene, name)
    nodes: dict[str, Any] = {}
    try:
        for key in SEQUENCES:
            nodes[key] = _add_volume(scene, case.images[key], f"{name} {NAMES[key]}")
            yield study
        _show_decisions(study, nodes, case)
    except BaseException:
        for node in nodes.values():
            if scene.IsNodePresent(node):
                remove_node(node)
        study.remove()
        raise
    yield study


def _show_decisions(study: StudyScene, nodes: Mapping[str, Any], case: ReviewedCase) -> None:
    """Regions, boxes and grade of a case whose volumes are in the scene."""
    scene, name = study.scene, study.study_id
    with study.batch():
        segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} regions")
        tag(segmentation, name, SEGMENTATION)
        regions.prepare(segmentation, nodes["t1ce"])
        study.link_volumes(nodes)
        review = Review(study)
        review.write_labels(case.labels)
        if case.regions_by == MODEL:
            study.mark_regions_as_written()
        set_time(segmentation, WHEN, case.regions_decided)
        if case.findings is not None:
            study.text_node(FINDINGS).SetText(json.dumps(case.findings))
        for each in case.boxes:
            roi = study.add_box(each.box, each.id, each.score, each.state)
            set_time(roi, WHEN, each.decided)
            roi.SetDisplayVisibility(each.state != REJECTED)
        study.write_grade()
        values = ((VERDICT, case.verdict), (DIFFICULTY, case.difficulty), (COMMENT, case.comment))
        for attribute, value in (*values, (READER_GRADE, case.grade if case.grade_by == READER else None)):
            if value:
                study.grade_text.SetAttribute(attribute, value)
        set_time(study.grade_text, GRADE_WHEN, case.grade_decided)
        study.write_grade()
        study.write_table()


def set_time(node: Any, attribute: str, time: str) -> None:
    """Note when something was decided, or that nothing was."""
    if time:
        node.SetAttribute(attribute, time)
    else:
        node.RemoveAttribute(attribute)


def _add_volume(scene: Any, volume: Volume, name: str) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*volume.grid.shape)
    image.AllocateScalars(vtk.VTK_FLOAT, 1)
    voxels_of(image)[...] = volume.array
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(matrix_of(volume.grid.affine))
    node.CreateDefaultDisplayNodes()
    return node
