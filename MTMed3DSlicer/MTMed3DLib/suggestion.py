"""Which volumes of a scene are the four sequences: by DICOM header first, then by name; doubts are told."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from MTMed3DLib.dicom_series import Database, header_of
from MTMed3DLib.inputs import NAMES, SEQUENCES, is_scalar
from MTMed3DLib.nodes import ijk_to_ras

if TYPE_CHECKING:
    from MTMed3DCore.sequences import Verdict

PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Suggestion:
    """What the selectors may be filled with.

    Args:
        nodes: the volume of each sequence, or None where none is surely the one.
        hints: what the reader must know of a sequence: which volumes it may be where it is not decided, or which
            others there are where one was preferred.
    """

    nodes: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(SEQUENCES))
    hints: dict[str, str] = field(default_factory=dict)


def suggest(scene: Any, database: Database | None = None, without: Collection[str] = ()) -> Suggestion:
    """The volume of each sequence, by the function that also names files and DICOM series outside of Slicer.

    Of several volumes of one sequence the one with clearly finer voxels is taken, else the only axial one; where
    neither tells, none is.

    Args:
        scene: vtkMRMLScene.
        database: Slicer's DICOM database, or None where it is not open; then names decide.
        without: IDs of nodes that are spoken for.
    """
    found: list[tuple[Any, Verdict]] = []
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode")
        if not node.GetHideFromEditors() and is_scalar(node) and node.GetID() not in without:
            found.append((node, verdict_of(node, database)))
    suggestion = Suggestion()
    for name in SEQUENCES:
        sure = [node for node, verdict in found if verdict.sequence == name]
        if sure:
            _choose(suggestion, name, sure)
            continue
        maybe = [f"{_quoted(node)} ({verdict.text})" for node, verdict in found if name in verdict.candidates]
        if maybe:
            suggestion.hints[name] = f"{NAMES[name]} may be {', '.join(maybe)}; choose it."
    return suggestion


def verdict_of(node: Any, database: Database | None = None) -> Verdict:
    """What a volume is taken for: by the header of its DICOM series where it has one, and then by its name."""
    from MTMed3DCore.dicom.series import FEWEST_SLICES
    from MTMed3DCore.sequences import Verdict, identify

    header = header_of(node, database)
    if header is None:
        return identify(node.GetName())
    image = node.GetImageData()
    if image is not None and min(image.GetDimensions()) < FEWEST_SLICES:
        return Verdict(aside=f"only {min(image.GetDimensions())} slices")
    return identify(header=header, file_name=node.GetName())


def _choose(suggestion: Suggestion, name: str, sure: list[Any]) -> None:
    """Take one of the volumes that are surely a sequence, and say what the reader must know of that."""
    from MTMed3DCore.dicom.choosing import preferred

    found = preferred([_shape(node) for node in sure])
    if found is None:
        several = " and ".join(_quoted(node) for node in sure)
        suggestion.hints[name] = f"{several} are {NAMES[name]} alike; choose one."
        return
    index, reason = found
    suggestion.nodes[name] = sure[index]
    others = [_quoted(node) for node in sure if node is not sure[index]]
    if others:
        text = f"Of several {NAMES[name]}, {_quoted(sure[index])} was taken ({reason}), not {', '.join(others)}."
        suggestion.hints[name] = text


def _shape(node: Any) -> tuple[float, str]:
    """Volume of a voxel in mm3, and the plane that the slices are nearest to."""
    directions = ijk_to_ras(node)[:3, :3]
    return float(abs(np.linalg.det(directions))), PLANES[int(np.abs(directions[:, 2]).argmax())]


def _quoted(node: Any) -> str:
    return f"“{node.GetName()}”"
