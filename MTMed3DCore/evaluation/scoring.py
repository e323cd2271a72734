"""One case: the findings and the baselines, each against the truth on the T1ce grid."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from time import perf_counter

import numpy as np
import numpy.typing as npt

from MTMed3DCore.datalist.building import SMALLEST_LESION_ML, read_label
from MTMed3DCore.datalist.case import Case
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.evaluation.baseline import threshold_labels
from MTMed3DCore.evaluation.labels import LabelConvention, unify_labels
from MTMed3DCore.evaluation.lesionwise import lesion_wise
from MTMed3DCore.evaluation.overlap import EVALUATED, dice
from MTMed3DCore.evaluation.results import COMPONENTS, MODEL, THRESHOLDS, CaseResult, MethodResult, RegionScore
from MTMed3DCore.evaluation.surface import hd95_mm
from MTMed3DCore.findings import REGION_LABELS, Findings
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.inference.lesions import tumour_components
from MTMed3DCore.preparation.brain import find_stripped_brain
from MTMed3DCore.study import Study

Labels = npt.NDArray[np.uint8]


def score_case(case: Case, findings: Findings, study: Study, tasks: Collection[str], key: str = "") -> CaseResult:
    """Measure the findings of a case and the baselines.

    Args:
        case: with its truth; a task whose truth nobody knows is left out.
        findings: of the model, on the T1ce grid as it came in.
        study: the images, for the baseline.
        tasks: what the model does, of ``segmentation``, ``detection`` and ``grading``; a model that only segments is
            measured on the boxes that the analysis draws round its regions, too.
        key: kept in the result.

    Raises:
        InputRefused: ``label-grid``, and what reading the label map refuses.
    """
    began = perf_counter()
    truth = None if case.label is None else truth_labels(case, findings.grid)
    boxes = None if case.boxes is None else [box.to_voxel(findings.grid).to_list() for box in case.boxes]
    segments = "segmentation" in tasks
    methods = {}
    if segments or "detection" in tasks:
        found = [lesion.box.to_voxel(findings.grid).to_list() for lesion in findings.lesions]
        regions = region_scores(findings.labels, truth, findings.grid) if segments and truth is not None else None
        methods[MODEL] = MethodResult(regions, found, [lesion.score for lesion in findings.lesions])
        by_threshold = _threshold_baseline(study)
        if by_threshold is not None:
            baseline = region_scores(by_threshold, truth, findings.grid) if segments and truth is not None else None
            methods[THRESHOLDS] = MethodResult(baseline, *component_boxes(by_threshold, findings.grid))
    if segments:
        methods[COMPONENTS] = MethodResult(None, *component_boxes(findings.labels, findings.grid))
    grades = "grading" in tasks
    grade = findings.grade
    return CaseResult(
        id=case.id,
        patient=case.patient,
        fold=case.fold,
        key=key,
        grade=case.grade,
        truth_boxes=boxes,
        graded=grades,
        probability_hgg=grade.probability_hgg if grades and grade is not None else None,
        methods=methods,
        model=asdict(findings.model),
        seconds={"analysis": findings.timing_s.get("total", 0.0), "measuring": perf_counter() - began},
        warnings=[notice.code for notice in findings.warnings],
    )


def truth_labels(case: Case, grid: Grid) -> Labels:
    """The label map of a case in the values 1, 2 and 4, on the grid of the findings.

    Raises:
        InputRefused: ``label-grid``, or what reading it refuses.
    """
    assert case.label is not None
    label = read_label(case)
    if not label.grid.same_as(grid):
        text = f"{case.label.path} {label.grid.shape} does not lie on the grid of the findings {grid.shape}."
        raise InputRefused("label-grid", text, "Make the data list again, or analyse the study anew.")
    convention = LabelConvention[case.convention] if case.convention else None
    return unify_labels(label.array, case.label.path, convention)


def region_scores(found: Labels, truth: Labels, grid: Grid) -> dict[str, RegionScore]:
    """Every measure of every region of two label maps (X, Y, Z) on one grid."""
    scores = {}
    for name in EVALUATED:
        a, b = (np.isin(labels, REGION_LABELS[name]) for labels in (found, truth))
        lesions = lesion_wise(a, b, grid.spacing)
        scores[name] = RegionScore(
            dice=dice(a, b),
            hd95_mm=hd95_mm(a, b, grid.spacing),
            lesion_dice=lesions.dice,
            lesion_hd95_mm=lesions.hd95_mm,
            lesions=lesions.lesions,
            missed=lesions.missed,
            false=lesions.false,
            truth_ml=float(b.sum()) * grid.voxel_volume_ml,
            found_ml=float(a.sum()) * grid.voxel_volume_ml,
        )
    return scores


def component_boxes(labels: Labels, grid: Grid) -> tuple[list[list[float]], list[float]]:
    """Boxes round the tumours of a label map, by the rules of a data list, and millilitres for their scores."""
    numbers = tumour_components(labels > 0, grid, SMALLEST_LESION_ML)
    sizes = np.bincount(numbers.ravel())[1:] * grid.voxel_volume_ml
    boxes = [VoxelBox.around(numbers == number).to_list() for number in range(1, len(sizes) + 1)]
    return boxes, sizes.tolist()


def _threshold_baseline(study: Study) -> Labels | None:
    """Labels by thresholds; None for a study that is not skull-stripped, where skull and scalp would be tumour."""
    brain = find_stripped_brain({name: volume.array for name, volume in study.sequences.items()}, study.grid)
    if brain is None:
        return None
    image = study.array() * brain.mask
    if not (image.min(axis=0) > 0).any():
        return np.zeros(study.grid.shape, np.uint8)
    return threshold_labels(image)
