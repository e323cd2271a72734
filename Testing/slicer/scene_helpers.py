"""Volumes and results in a scene, shared by the tests of scene, review and export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from vtk.util.numpy_support import numpy_to_vtk
from vtkmodules.vtkCommonCore import vtkCollection

from MTMed3DCore.exports import write_findings
from MTMed3DCore.geometry import Grid
from MTMed3DLib.nodes import matrix_of, oriented_image
from MTMed3DLib.scene import StudyScene
from Testing.example_findings import GRIDS, findings_on

SEQUENCES = ("t1", "t1ce", "t2", "flair")
_STARTED = slicer.vtkMRMLScene(), slicer.vtkSlicerSegmentationsModuleLogic()
"""As when the application starts: the logic registers what converts segments into label maps."""
_STARTED[1].SetMRMLScene(_STARTED[0])


def add_volume(scene: Any, name: str, grid: Grid, seed: int = 0) -> Any:
    """A float volume of noise on a grid."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    image = oriented_image(np.zeros(grid.shape, np.uint8), np.eye(4))
    noise = np.random.default_rng(seed).uniform(1, 99, grid.shape).astype(np.float32)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(noise.T).ravel(), deep=True))
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(matrix_of(grid.affine))
    return node


def add_transform(scene: Any, name: str, matrix: np.ndarray) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(matrix_of(matrix))
    return node


def rigid(angle_degrees: float, shift: tuple[float, float, float]) -> np.ndarray:
    """Rotation about an oblique axis, then a shift."""
    axis = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(angle_degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = shift
    return matrix


def shown_study(
    scene: Any,
    folder: Path,
    grid: str | Grid = "oblique, left-handed",
    transform: np.ndarray | None = None,
    study_id: str = "case 1",
) -> tuple[StudyScene, dict[str, Any]]:
    """A result of two lesions in the scene, and the four volumes that it belongs to."""
    place = GRIDS[grid] if isinstance(grid, str) else grid
    nodes = {name: add_volume(scene, name.upper(), place, seed) for seed, name in enumerate(SEQUENCES)}
    if transform is not None:
        parent = add_transform(scene, "head", transform)
        for node in nodes.values():
            node.SetAndObserveTransformNodeID(parent.GetID())
    write_findings(findings_on(place, with_study=False), folder, overwrite=True)
    study = StudyScene(scene, study_id)
    study.show(folder, nodes["t1ce"], nodes)
    return study, nodes


def world_corners(roi: Any) -> np.ndarray:
    """Corners (8, 3) of a box as the views show it."""
    matrix = slicer.vtkMRMLMarkupsROINode.GetObjectToWorldMatrix(roi)
    affine = np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    return affine[:3, 3] + (signs * np.array(roi.GetSize()) / 2) @ affine[:3, :3].T


def farthest(corners: np.ndarray, others: np.ndarray) -> float:
    """Greatest distance from a corner to its nearest one of the other box."""
    return float(np.linalg.norm(corners[:, None] - others, axis=-1).min(axis=0).max())


def with_files(scene: Any) -> tuple[Any, ...]:
    """The logics without which a scene cannot read or write an .mrb file; to be kept while it does."""
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    application.SetSliceLogics(vtkCollection())
    application.SetViewLogics(vtkCollection())
    remote = slicer.vtkMRMLRemoteIOLogic()
    remote.SetMRMLScene(scene)
    remote.SetMRMLApplicationLogic(application)
    remote.GetCacheManager().SetRemoteCacheDirectory(tempfile.mkdtemp())
    manager = slicer.vtkDataIOManagerLogic()
    manager.SetMRMLScene(scene)
    manager.SetMRMLApplicationLogic(application)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    logics = [slicer.vtkSlicerMarkupsLogic(), slicer.vtkSlicerSegmentationsModuleLogic(), slicer.vtkSlicerTablesLogic()]
    for logic in logics:
        logic.SetMRMLScene(scene)
    return application, remote, manager, logics
