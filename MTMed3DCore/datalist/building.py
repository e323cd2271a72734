"""From folders to a data list: cases, grades, boxes and folds, with everything left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import nibabel
import numpy as np

from MTMed3DCore.datalist.case import Case, DataList, Skipped
from MTMed3DCore.datalist.folds import assign_folds
from MTMed3DCore.datalist.grades import grade_of_folder, grades_of_annotation, grades_of_tables, known_grade
from MTMed3DCore.datalist.layouts import find_cases
from MTMed3DCore.errors import InputRefused, MTMed3DError
from MTMed3DCore.evaluation.labels import LabelConvention, recognise_convention, unify_labels
from MTMed3DCore.geometry import Grid, VoxelBox, WorldBox
from MTMed3DCore.inference.lesions import tumour_components
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.volume import Volume, read_volume

SMALLEST_LESION_ML = 0.1
"""Connected tumour below this is a speck of the labelling, and gets no box."""


def build_datalist(
    roots: Sequence[Path],
    *,
    folds: int = 5,
    seed: int = 0,
    annotation: Path | None = None,
    progress: Progress = silent,
) -> DataList:
    """List every case below some folders.

    Args:
        roots: folders of any of the known layouts.
        folds, seed: see `assign_folds`.
        annotation: the published ``data_annotation.json``, for its grades.
        progress: told as stage ``read``, case by case, and may cancel there.

    Raises:
        InputRefused: ``folder-missing``, ``no-cases``, ``annotation-damaged``.
        WrongUse: ``folds``.
    """
    authors = {} if annotation is None else grades_of_annotation(annotation)
    cases: dict[str, Case] = {}
    skipped: list[Skipped] = []
    for root in roots:
        if not root.is_dir():
            raise InputRefused("folder-missing", f"{root} is no folder.", "Give a folder with labelled studies.")
        found = find_cases(root)
        skipped += found.skipped
        tables = grades_of_tables(root)
        for case in found.cases:
            if case.id in cases:
                skipped.append(Skipped(str(found.folders[case.id]), f"another case is called {case.id} as well"))
                continue
            by_folder = grade_of_folder(found.folders[case.id], root)
            folder = {} if by_folder is None else {case.id: by_folder}
            known = known_grade(case.id, ("folder name", folder), ("table", tables), ("annotation file", authors))
            if known is not None:
                case = replace(case, grade=known[0], source=f"{case.source}; grade from the {known[1]}")
            cases[case.id] = case
    complete = []
    for number, case in enumerate(cases.values()):
        progress("read", number / len(cases), case.id)
        try:
            complete.append(with_boxes(case))
        except MTMed3DError as error:
            skipped.append(Skipped(str((case.label or case.images["t1ce"]).path), error.text))
    if not complete:
        why = f" {len(skipped)} were skipped; the first: {skipped[0].path}: {skipped[0].reason}." if skipped else ""
        places = ", ".join(map(str, roots))
        raise InputRefused("no-cases", f"{places} holds no case.{why}", "Give a folder in one of the BraTS layouts.")
    progress("read", 1.0, f"{len(complete)} cases")
    listed = assign_folds(sorted(complete, key=lambda case: case.id), folds, seed)
    return DataList(listed, tuple(skipped), _notes(listed), folds, seed)


def with_boxes(case: Case) -> Case:
    """The case with one box for each lesion of its label map, and with its label convention.

    Boxes that a reader has reviewed stay as they are. A lesion is what touches or lies less than 5 mm apart, as in the
    analysis.

    Raises:
        InputRefused: a label map that cannot be read, has strange values, or does not lie on the images' grid.
    """
    if case.label is None:
        return case
    label = read_label(case)
    _check_grid(case, label)
    convention = LabelConvention[case.convention] if case.convention else recognise_convention(label.array)
    labels = unify_labels(label.array, case.label.path, convention)
    boxes = lesion_boxes(Volume(labels, label.grid)) if case.boxes is None else case.boxes
    return replace(case, boxes=boxes, convention=convention.name)


def lesion_boxes(labels: Volume) -> tuple[WorldBox, ...]:
    """Boxes of the lesions of a label map of the values 1, 2, 4, largest first."""
    components = tumour_components(labels.array > 0, labels.grid, SMALLEST_LESION_ML)
    sizes = np.bincount(components.ravel())[1:]
    order = 1 + np.argsort(-sizes, kind="stable")
    return tuple(VoxelBox.around(components == n).to_world(labels.grid) for n in order)


def read_label(case: Case) -> Volume:
    """The label map of a case as its file has it."""
    assert case.label is not None
    return read_volume(case.label.path, blank=True)


def _check_grid(case: Case, label: Volume) -> None:
    """Refuse a label map that lies elsewhere than T1ce."""
    path = case.images["t1ce"].path
    grid = header_grid(path)
    same = grid.same_as(label.grid)
    shape = grid.shape
    if not same:
        text = f"The label map {label.grid.shape} does not lie on the grid of {path.name} {tuple(shape)}."
        raise InputRefused("label-grid", text, "Resample the label map onto the T1ce, or leave the case out.")


def header_grid(path: Path) -> Grid:
    """The grid of an image file; of NIfTI only the header is read, of a 4D file the grid of its volumes."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        header = cast(nibabel.Nifti1Image, nibabel.load(path))
        return Grid((header.shape[0], header.shape[1], header.shape[2]), header.affine)
    return read_volume(path).grid


def _notes(cases: Sequence[Case]) -> tuple[str, ...]:
    notes = []
    ungraded = sum(case.grade is None for case in cases)
    unlabelled = sum(case.label is None for case in cases)
    if ungraded:
        notes.append(f"{ungraded} of {len(cases)} cases have no known grade; they do not train or measure the grading.")
    if unlabelled:
        notes.append(f"{unlabelled} of {len(cases)} cases have no label map; they do not train or measure anything.")
    return tuple(notes)
