"""Between MRML nodes and numpy: grids, voxels, boxes and tags. No Qt, no application."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from MTMed3DLib.attributes import ROLE, STUDY, WHEN, WRITTEN

if TYPE_CHECKING:
    from MTMed3DCore.geometry import Grid, WorldBox

Array = np.ndarray[Any, Any]
SMALLEST_SIDE_MM = 0.1
MOVED_MM = 0.01
"""A box of which a corner lies further than this from where it was written was moved by a reader."""


def array_of(matrix: Any) -> Array:
    """A vtkMatrix4x4 as an array (4, 4)."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def matrix_of(array: Array) -> Any:
    """An array (4, 4) as a vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, float(array[row, column]))
    return matrix


def ijk_to_ras(volume: Any) -> Array:
    """Voxel to RAS mm (4, 4) of a volume node, in the frame below its parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return array_of(matrix)


def to_frame_of(source: Any, target: Any) -> Array:
    """Matrix (4, 4) from the frame of one node to that of another, through their linear parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(
        source.GetParentTransformNode(), target.GetParentTransformNode() if target is not None else None, matrix
    )
    return array_of(matrix)


def has_linear_transform(node: Any) -> bool:
    """Whether nothing but matrices stands between a node and the world."""
    parent = node.GetParentTransformNode()
    return parent is None or bool(parent.IsTransformToWorldLinear())


def grid_of(volume: Any) -> Grid:
    """The grid of a volume node, in the frame below its parent transform."""
    from MTMed3DCore.geometry import Grid

    dimensions = volume.GetImageData().GetDimensions()
    return Grid((dimensions[0], dimensions[1], dimensions[2]), ijk_to_ras(volume))


def voxels_of(image: Any) -> Array:
    """Voxels (X, Y, Z) of a vtkImageData with one component; a view, not a copy."""
    sizes = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(sizes[::-1]).T


def oriented_image(array: Array, affine: Array) -> Any:
    """Voxels (X, Y, Z) of uint8 with a voxel-to-RAS matrix, as a vtkOrientedImageData."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*array.shape)
    flat = np.ascontiguousarray(array.T).ravel()
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True, array_type=vtk.VTK_UNSIGNED_CHAR))
    image.SetGeometryFromImageToWorldMatrix(matrix_of(affine))
    return image


def box_of(roi: Any, frame: Any = None) -> WorldBox:
    """The box of a markups ROI, in the frame below its parent transform, or in that of another node.

    A side that was dragged flat is `SMALLEST_SIDE_MM` long.
    """
    from MTMed3DCore.geometry import WorldBox

    matrix = array_of(roi.GetObjectToNodeMatrix())
    if frame is not None and frame.GetTransformNodeID() != roi.GetTransformNodeID():
        matrix = to_frame_of(roi, frame) @ matrix
    scale = np.linalg.norm(matrix[:3, :3], axis=0)
    size = np.maximum(np.abs(roi.GetSize()) * scale, SMALLEST_SIDE_MM)
    return WorldBox(matrix[:3, 3], size, (matrix[:3, :3] / scale).T)


def place_roi(roi: Any, box: WorldBox) -> None:
    """Give a markups ROI the place, size and axes of a box; left-handed axes are turned into the same box."""
    axes = np.array(box.axes, dtype=np.float64)
    if np.linalg.det(axes) < 0:
        axes[2] *= -1  # a box is symmetric, so turning an axis round moves no corner
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes.T, box.center
    roi.SetROIType(slicer.vtkMRMLMarkupsROINode.ROITypeBox)
    roi.SetSize(*(float(v) for v in box.size))
    roi.SetAndObserveObjectToNodeMatrix(matrix_of(matrix))


def style_box(roi: Any) -> None:
    """Give a box the colour of lesions, an outline without a fill, its name, and no handles."""
    from MTMed3DCore.exports.regions import LESION_COLOR

    roi.CreateDefaultDisplayNodes()
    display = roi.GetDisplayNode()
    colour = [component / 255 for component in LESION_COLOR]
    display.SetColor(*colour)
    display.SetSelectedColor(*colour)
    display.SetFillVisibility(False)
    display.SetPropertiesLabelVisibility(True)
    display.SetPointLabelsVisibility(False)
    display.SetHandlesInteractive(False)


def same_place(first: WorldBox, second: WorldBox) -> bool:
    """Whether each of two boxes holds the other's middle: they mean one lesion."""
    return _holds(first, second.center) and _holds(second, first.center)


def _holds(box: WorldBox, point: Array) -> bool:
    along = box.axes @ (np.asarray(point) - box.center)
    return bool((np.abs(along) <= box.size / 2).all())


def text_of_box(box: WorldBox) -> str:
    """The box as an attribute keeps it; see `was_moved`."""
    return " ".join(repr(float(value)) for value in box.corners().ravel())


def was_moved(roi: Any) -> bool:
    """Whether a box is no longer where it was written; the last digits that files lose do not count."""
    written = np.array((roi.GetAttribute(WRITTEN) or "nan").split(), dtype=np.float64)
    if written.size != 24:
        return True
    distances = np.linalg.norm(box_of(roi).corners()[:, None] - written.reshape(8, 3), axis=-1)
    return bool(distances.min(axis=1).max() > MOVED_MM)  # the order of corners depends on the handedness of the axes


def mark_decided(node: Any) -> None:
    """Note the time of a reader's decision on a node, in UTC."""
    node.SetAttribute(WHEN, datetime.now(UTC).isoformat(timespec="seconds"))


def along_world_axes(labels: Array, affine: Array) -> Array:
    """The same voxels with every array axis running the way of the world axis that it is nearest to.

    Slicer stores left-handed volumes right-handed when a scene is saved, so that an axis runs the other way afterwards.
    """
    for axis in range(3):
        column = affine[:3, axis]
        if column[np.abs(column).argmax()] < 0:
            labels = np.flip(labels, axis)
    return labels


def digest_of_labels(labels: Array, affine: Array) -> str:
    """Changes with any voxel of a label map, and not with the direction in which an axis is stored."""
    turned = np.ascontiguousarray(along_world_axes(labels, affine), dtype=np.uint8)
    return hashlib.sha256(turned.tobytes()).hexdigest()[:16]


def tag(node: Any, study_id: str, role: str) -> None:
    """Mark a node as ours."""
    node.SetAttribute(STUDY, study_id)
    node.SetAttribute(ROLE, role)


def tagged(scene: Any, study_id: str | None = None, role: str | None = None) -> Iterator[Any]:
    """Our nodes of a scene, of one study and in one role where given, in the order of the scene."""
    for index in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(index)
        study, its_role = node.GetAttribute(STUDY), node.GetAttribute(ROLE)
        if study and (study_id is None or study == study_id) and (role is None or its_role == role):
            yield node


def remove_node(node: Any) -> None:
    """Take a node out of its scene, with its subject hierarchy item and the nodes that are its alone."""
    scene = node.GetScene()
    own = []
    if node.IsA("vtkMRMLDisplayableNode"):
        own += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        own += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.RemoveItem(item, False, False)
    for each in [node, *own]:
        if each is not None:
            scene.RemoveNode(each)
