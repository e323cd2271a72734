"""The segmentation node of a study: its voxels on the grid of T1ce, and what tells that a reader changed them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk

from MTMed3DLib.attributes import NEWER, SEGMENTATION, T1CE
from MTMed3DLib.nodes import (
    Array,
    array_of,
    digest_of_labels,
    grid_of,
    oriented_image,
    remove_node,
    tag,
    to_frame_of,
    voxels_of,
)

if TYPE_CHECKING:
    from MTMed3DCore.geometry import Grid
    from MTMed3DLib.scene import StudyScene


SAME_GRID_MM = 1e-4
"""How far two voxel-to-world matrices of one grid may differ in any entry."""


def load(node: Any, file: Path) -> None:
    """Replace the segments of a node with those of a ``.seg.nrrd`` file, to which it keeps no tie.

    Raises:
        ValueError: the file cannot be read.
    """
    node.GetSegmentation().RemoveAllSegments()
    scene = node.GetScene()
    storage = slicer.vtkMRMLSegmentationStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(file))
    read = storage.ReadData(node)
    scene.RemoveNode(storage)
    if not read:
        raise ValueError(f"{file} cannot be read.")


def prepare(node: Any, t1ce: Any) -> None:
    """Give a segmentation the grid and the place of T1ce, and the three regions where it lacks them."""
    from MTMed3DCore.exports.regions import REGIONS

    for region in REGIONS:
        if node.GetSegmentation().GetSegment(region.key) is None:
            segment = slicer.vtkSegment()
            segment.SetName(region.name)
            segment.SetColor(*region.rgb)
            segment.SetTag(segment.GetTerminologyEntryTagName(), region.terminology_entry)
            node.GetSegmentation().AddSegment(segment, region.key)
    attach(node, t1ce)


def attach(node: Any, t1ce: Any) -> None:
    """Give a segmentation the grid and the place of T1ce."""
    node.SetNodeReferenceID(T1CE, t1ce.GetID())
    # The transform comes first: the geometry is taken over relative to it, and edits and saved files lie on it.
    node.SetAndObserveTransformNodeID(t1ce.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(t1ce)
    node.CreateDefaultDisplayNodes()


def grid_of_regions(node: Any, t1ce: Any) -> Grid:
    """The grid of T1ce in the frame of the segmentation; without T1ce the grid that the segmentation refers to."""
    from MTMed3DCore.geometry import Grid

    if t1ce is not None and t1ce.GetImageData() is not None:
        own = grid_of(t1ce)
        if t1ce.GetTransformNodeID() == node.GetTransformNodeID():
            return own
        return Grid(own.shape, to_frame_of(t1ce, node) @ own.affine)
    converter, image = slicer.vtkSegmentationConverter, slicer.vtkOrientedImageData()
    name = converter.GetReferenceImageGeometryParameterName()
    if not converter.DeserializeImageGeometry(node.GetSegmentation().GetConversionParameter(name), image, False):
        raise ValueError(f"The T1ce volume of {node.GetName()} was deleted, and its grid is not known. Load it again.")
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    sizes = image.GetDimensions()
    return Grid((sizes[0], sizes[1], sizes[2]), array_of(matrix))


def read_labels(node: Any, grid: Grid) -> Array:
    """Voxels of the three regions: uint8 (X, Y, Z) on `grid`, 1, 2, 4; where segments overlap, the inner one wins."""
    from MTMed3DCore.exports.regions import REGIONS

    labels = np.zeros(grid.shape, np.uint8, order="F")  # as VTK stores voxels, which halves the time
    by_key = {region.key: region.label for region in REGIONS}
    for key in ("oedema", "necrotic_core", "enhancing"):
        part = segment_voxels(node, key, grid)
        if part is not None:
            where, mask = part
            labels[where][mask] = by_key[key]
    return labels


def segment_voxels(node: Any, key: str, grid: Grid) -> tuple[tuple[slice, ...], Array] | None:
    """A part of `grid`, and which of its voxels belong to a segment; None where the segment has none."""
    segment = node.GetSegmentation().GetSegment(key)
    if segment is None:
        return None
    part = _on_grid(node, segment, grid)
    if part is not None:
        return part
    image, resampled = slicer.vtkOrientedImageData(), slicer.vtkOrientedImageData()
    if not node.GetBinaryLabelmapRepresentation(key, image):
        return None
    reference = oriented_image(np.zeros(grid.shape, np.uint8), grid.affine)
    resample = slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage
    resample(image, reference, resampled, False)
    return tuple(slice(0, size) for size in grid.shape), voxels_of(resampled) > 0


def _on_grid(node: Any, segment: Any, grid: Grid) -> tuple[tuple[slice, ...], Array] | None:
    """The part of `grid` that a segment's own voxels cover, and which of them are its; None off the grid."""
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = segment.GetRepresentation(name)
    if image is None or node.GetSegmentation().GetSourceRepresentationName() != name:
        return None
    extent, matrix = image.GetExtent(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    lower, upper = extent[::2], extent[1::2]
    if min(lower) < 0 or any(high >= size for high, size in zip(upper, grid.shape, strict=True)):
        return None
    if image.GetPointData().GetScalars() is None or np.abs(array_of(matrix) - grid.affine).max() > SAME_GRID_MM:
        return None
    where = tuple(slice(low, high + 1) for low, high in zip(lower, upper, strict=True))
    return where, voxels_of(image) == segment.GetLabelValue()


def write_labels(node: Any, grid: Grid, labels: Array) -> None:
    """Replace the voxels of the three regions: uint8 (X, Y, Z) on `grid`, 1, 2, 4."""
    from MTMed3DCore.exports.regions import REGIONS

    for region in REGIONS:
        mask = oriented_image((labels == region.label).astype(np.uint8), grid.affine)
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(mask, node, region.key)


def digest(node: Any, t1ce: Any) -> str:
    """Changes with any voxel of the three regions, and with any segment that comes or goes."""
    from MTMed3DCore.exports.regions import REGIONS

    grid, segmentation = grid_of_regions(node, t1ce), node.GetSegmentation()
    voxels = digest_of_labels(read_labels(node, grid), grid.affine)
    keys = {segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())}
    others = sorted(keys ^ {region.key for region in REGIONS})
    return " ".join([voxels, *others])


def show_regions(study: StudyScene, folder: Path, t1ce: Any) -> list[str]:
    """Bring the regions of a result into the scene, beside those that a reader edited; returns what was kept."""
    existing, newer = study.segmentation, study.newer
    if existing is not None and study.regions_edited:
        newer = _load_as(study, newer, folder, t1ce, NEWER, f"{study.study_id} regions (new run)")
        newer.SetDisplayVisibility(False)
        return [f"The edited regions were kept; the new ones are in “{newer.GetName()}”, hidden."]
    _load_as(study, existing, folder, t1ce, SEGMENTATION, f"{study.study_id} regions")
    study.mark_regions_as_written()
    if newer is not None:
        remove_node(newer)
    return []


def _load_as(study: StudyScene, node: Any, folder: Path, t1ce: Any, role: str, name: str) -> Any:
    if node is None:
        node = study.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    load(node, folder / "segmentation.seg.nrrd")
    node.SetName(name)
    tag(node, study.study_id, role)
    prepare(node, t1ce)
    return node
