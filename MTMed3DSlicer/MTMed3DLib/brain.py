"""The brain mask of a study: the one that an analysis used, as a node, and the one that a reader gives it.

The node is a segmentation of one segment, tagged as ours. What a reader draws in it stays, and it may be given to the
next analysis like any other label map or segmentation of the scene.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer

from MTMed3DLib.attributes import BRAIN, ROLE, SEGMENTATION, WRITTEN
from MTMed3DLib.nodes import (
    Array,
    digest_of_labels,
    grid_of,
    has_linear_transform,
    ijk_to_ras,
    oriented_image,
    remove_node,
    tag,
    tagged,
    to_frame_of,
    voxels_of,
)
from MTMed3DLib.regions import attach, segment_voxels

if TYPE_CHECKING:
    from MTMed3DCore.geometry import Grid

FILE = Path("preparation") / "brain_mask.nii.gz"
"""The mask in the folder of a result, on the T1ce grid."""
SEGMENT = "brain"
COLOR = (0.34, 0.85, 0.64)


def brain_node(scene: Any, study_id: str) -> Any:
    """The segmentation node of a study's brain mask, or None."""
    return next(tagged(scene, study_id, BRAIN), None)


def show_mask(scene: Any, study_id: str, folder: Path, t1ce: Any) -> list[str]:
    """Bring the brain mask of a result into the scene, hidden.

    Args:
        scene: vtkMRMLScene.
        study_id: of the study.
        folder: of the result, made in the frame of `t1ce`.
        t1ce: volume node.

    Returns:
        What was kept of a reader's work instead of being replaced, in words.
    """
    node, file = brain_node(scene, study_id), folder / FILE
    if node is not None and is_edited(node, t1ce):
        return [f"The brain mask “{node.GetName()}” that you edited was kept as it is."]
    if not file.is_file():
        if node is not None:
            remove_node(node)
        return []
    from MTMed3DCore.preparation.record import read_mask

    grid = grid_of(t1ce)
    mask = read_mask(file, grid).astype(np.uint8)
    if node is None:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{study_id} brain mask")
        tag(node, study_id, BRAIN)
        segment = slicer.vtkSegment()
        segment.SetName("Brain mask")
        segment.SetColor(*COLOR)
        node.GetSegmentation().AddSegment(segment, SEGMENT)
        attach(node, t1ce)
        display = node.GetDisplayNode()
        display.SetAllSegmentsVisibility2DFill(False)  # an outline leaves the image to be seen
        display.SetVisibility(False)
    attach(node, t1ce)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetBinaryLabelmapToSegment(oriented_image(mask, grid.affine), node, SEGMENT)
    node.SetAttribute(WRITTEN, _digest(node, t1ce))
    return []


def is_edited(node: Any, t1ce: Any) -> bool:
    """Whether a reader changed the mask since it was written."""
    return bool(node.GetAttribute(WRITTEN) != _digest(node, t1ce))


def mask_of(node: Any, t1ce: Any) -> tuple[Array, Array]:
    """A brain mask as a reader gives it: uint8 (X, Y, Z), and its voxel-to-RAS matrix in the frame of T1ce.

    Of a segmentation every segment counts, of a label map every label.

    Raises:
        ValueError: it marks nothing.
    """
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        mask, affine = voxels_of(node.GetImageData()) != 0, to_frame_of(node, t1ce) @ ijk_to_ras(node)
    else:
        mask, affine = voxels_of_mask(node, t1ce), ijk_to_ras(t1ce)
    if not mask.any():
        raise ValueError(f"The brain mask ({node.GetName()}) marks no voxel of the T1ce.")
    return mask.astype(np.uint8), affine


def problem_of_mask(node: Any) -> str | None:
    """Why a node cannot be the brain mask, as a sentence; None where it can, or where it is None."""
    if node is None:
        return None
    name = f"The brain mask ({node.GetName()})"
    if node.GetAttribute(ROLE) == SEGMENTATION:
        return f"{name} holds the tumour regions of a result; choose a mask of the brain."
    if not has_linear_transform(node):
        return f"{name} is under a non-linear transform; harden the transform first."
    if node.IsA("vtkMRMLSegmentationNode"):
        empty = node.GetSegmentation().GetNumberOfSegments() == 0
    else:
        empty = node.GetImageData() is None
    return f"{name} is empty." if empty else None


def voxels_of_mask(node: Any, t1ce: Any) -> Array:
    """The voxels of the T1ce, bool (X, Y, Z), that lie in any segment of a segmentation."""
    from MTMed3DCore.geometry import Grid

    shape = grid_of(t1ce).shape
    grid: Grid = Grid(shape, to_frame_of(t1ce, node) @ ijk_to_ras(t1ce))
    mask, segmentation = np.zeros(shape, bool, order="F"), node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        part = segment_voxels(node, segmentation.GetNthSegmentID(index), grid)
        if part is not None:
            where, inside = part
            mask[where] |= inside
    return mask


def _digest(node: Any, t1ce: Any) -> str:
    return digest_of_labels(voxels_of_mask(node, t1ce), ijk_to_ras(t1ce))
