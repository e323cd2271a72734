"""From folders to a data list: cases, grades, boxes and folds, with everything left out and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from MTMed3DCore.datalist.case import Case, DataList, Skipped
from MTMed3DCore.datalist.copies import fingerprint, settle_copies
from MTMed3DCore.datalist.folds import assign_folds
from MTMed3DCore.datalist.grades import grade_of_folder, grades_of_annotation, grades_of_tables, known_grade
from MTMed3DCore.datalist.layouts import Located, Origin, find_cases
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
    located: list[Located] = []
    skipped: list[Skipped] = []
    for root in roots:
        if not root.is_dir():
            raise InputRefused("folder-missing", f"{root} is no folder.", "Give a folder with labelled studies.")
        found = find_cases(root)
        skipped += found.skipped
        tables = grades_of_tables(root)
        located += [_with_grade(each, root, tables, authors) for each in found.cases]
    readable = []
    for number, each in enumerate(located):
        progress("read", number / len(located), each.case.id)
        file = each.case.images["t1ce"]
        try:
            t1ce = read_volume(file.path, index=file.index)
            file = each.case.label or file
            case = with_boxes(each.case, t1ce.grid)
            readable.append(replace(each, case=case, fingerprint=fingerprint(t1ce)))
        except MTMed3DError as error:
            skipped.append(Skipped(str(file.path), error.text))
    if not readable:
        why = f" {len(skipped)} were skipped; the first: {skipped[0].path}: {skipped[0].reason}." if skipped else ""
        places = ", ".join(map(str, roots))
        raise InputRefused("no-cases", f"{places} holds no case.{why}", "Give a folder in one of the BraTS layouts.")
    settled = settle_copies(readable)
    progress("read", 1.0, f"{len(settled.cases)} cases")
    listed = assign_folds(settled.cases, folds, seed)
    return DataList(listed, (*skipped, *settled.skipped), _notes(listed, settled.copies), folds, seed)


def _with_grade(located: Located, root: Path, tables: Mapping[str, str], authors: Mapping[str, str]) -> Located:
    """The case with the grade that its data state, unless a reader gave it one."""
    if located.grade is Origin.READER:
        return located
    case = located.case
    by_folder = grade_of_folder(located.folder, root)
    folder = {} if by_folder is None else {case.id: by_folder}
    known = known_grade(case.id, ("folder name", folder), ("table", tables), ("annotation file", authors))
    if known is None:
        return located
    case = replace(case, grade=known[0], source=f"{case.source}; grade from the {known[1]}")
    return replace(located, case=case, grade=Origin.DATA)


def with_boxes(case: Case, grid: Grid) -> Case:
    """The case with one box for each lesion of its label map, and with its label convention.

    Boxes that a reader has reviewed stay as they are. A lesion is what touches or lies less than 5 mm apart, as in the
    analysis.

    Args:
        case: with or without a label map.
        grid: of its T1ce.

    Raises:
        InputRefused: a label map that cannot be read, has strange values, or does not lie on the images' grid.
    """
    if case.label is None:
        return case
    label = read_label(case)
    if not grid.same_as(label.grid):
        name = case.images["t1ce"].path.name
        text = f"The label map {label.grid.shape} does not lie on the grid of {name} {grid.shape}."
        raise InputRefused("label-grid", text, "Resample the label map onto the T1ce, or leave the case out.")
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


def _notes(cases: Sequence[Case], copies: int) -> tuple[str, ...]:
    notes = []
    ungraded = sum(case.grade is None for case in cases)
    unlabelled = [case for case in cases if case.label is None]
    graded = sum(case.grade is not None for case in unlabelled)
    if ungraded:
        notes.append(f"{ungraded} of {len(cases)} cases have no known grade; they do not train or measure the grading.")
    if unlabelled:
        text = f"{len(unlabelled)} of {len(cases)} cases have no label map; they do not train or measure segmentation "
        grade = f" The grade of {graded} of them is measured, and trains where a patch holds nearly the whole brain."
        notes.append(f"{text}and detection.{grade if graded else ''}")
    if copies:
        notes.append(f"{copies} of {len(cases)} cases show the same images as another one; they share its patient.")
    return tuple(notes)
