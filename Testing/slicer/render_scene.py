"""Picture of an analysis as 3D Slicer's own libraries show it: three slices and the 3D view, headless.

    python Testing/slicer/render_scene.py OUT_FOLDER T1CE_OR_FLAIR PICTURE.png

Needs the ``slicer-core`` wheel and, without a display, Mesa's EGL (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import nibabel
import numpy as np
import slicer
import vtk
import vtkmodules.vtkRenderingFreeType
import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  (registers the renderer)

SIZE = (560, 560)
ZOOM = 0.85
"""Of the slices: how much of the whole volume's extent they show."""
PLANES = ("Axial", "Sagittal", "Coronal")
SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLMarkupsDisplayableManager",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLMarkupsDisplayableManager",
)


class Shown(Protocol):
    """What the views need: the scene, and the application's logic."""

    scene: Any
    app: Any


class HeadlessSlicer:
    """A MRML scene with the logics that loading and showing need."""

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        self.app = slicer.vtkSlicerApplicationLogic()
        self.app.SetMRMLScene(self.scene)
        self.app.GetColorLogic().SetMRMLScene(self.scene)
        self.app.GetColorLogic().AddDefaultColorNodes()
        self.app.SetSliceLogics(vtk.vtkCollection())
        self.app.SetViewLogics(vtk.vtkCollection())
        classes = {
            "Markups": slicer.vtkSlicerMarkupsLogic,
            "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic,
            "Volumes": slicer.vtkSlicerVolumesLogic,
        }
        self.logics = {name: made() for name, made in classes.items()}
        for name, logic in self.logics.items():
            logic.SetMRMLScene(self.scene)
            logic.SetMRMLApplicationLogic(self.app)
            self.app.SetModuleLogic(name, logic)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)

    def load_volume(self, path: Path) -> Any:
        """A NIfTI volume, shown in grey."""
        image = nibabel.load(path)
        array = np.asarray(image.dataobj, dtype=np.float32)
        slicer.mrmlScene = self.scene
        node = slicer.util.addVolumeFromArray(np.ascontiguousarray(array.T), ijkToRAS=image.affine, name=path.name)
        node.CreateDefaultDisplayNodes()
        show_grey(node)
        return node

    def load_segmentation(self, path: Path, reference: Any) -> Any:
        """A segmentation with its surfaces."""
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segmentation")
        storage = self.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName(str(path))
        if storage.ReadData(node) != 1:
            raise SystemExit(f"{path} cannot be loaded as a segmentation.")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
        node.CreateClosedSurfaceRepresentation()
        node.GetDisplayNode().SetOpacity2DFill(0.35)
        segments = node.GetSegmentation()
        for index, opacity in enumerate((1.0, 0.2, 1.0)[: segments.GetNumberOfSegments()]):
            node.GetDisplayNode().SetSegmentOpacity3D(segments.GetNthSegmentID(index), opacity)
        return node

    def load_box(self, path: Path) -> Any:
        """A lesion's box, without a fill."""
        node = self.scene.GetNodeByID(self.logics["Markups"].LoadMarkups(str(path), path.name))
        node.GetDisplayNode().SetFillOpacity(0)
        return node


class View:
    """A render window fed by displayable managers, as a view of the application is."""

    def __init__(self, headless: Shown, factory: Any, managers: tuple[str, ...], logic: Any) -> None:
        self.renderer, self.window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)  # with multisampling, depth peeling loses translucent surfaces
        self.window.SetSize(*SIZE)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.Initialize()
        factory.SetMRMLApplicationLogic(headless.app)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.logic = logic
        self.logic.SetMRMLApplicationLogic(headless.app)
        self.logic.SetMRMLScene(headless.scene)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.SetRenderer(self.renderer)
        self.managers.Initialize(factory, self.renderer)

    def pixels(self) -> Any:
        """What the window shows, as VTK image data."""
        self.window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self.window)
        grab.ReadFrontBufferOff()
        grab.Update()
        return grab.GetOutput()


def slice_view(headless: Shown, volume: Any, plane: str, centre: Sequence[float]) -> View:
    """The slice of a plane through a point in world RAS mm."""
    factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
    logic = slicer.vtkMRMLSliceLogic()
    headless.app.GetSliceLogics().AddItem(logic)
    view = View(headless, factory, SLICE_MANAGERS, logic)
    view.renderer.GetActiveCamera().ParallelProjectionOn()
    node = logic.AddSliceNode(plane)
    view.managers.SetMRMLDisplayableNode(node)
    node.SetOrientation(plane)
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    logic.ResizeSliceNode(*SIZE)
    logic.FitSliceToBackground()
    node.SetFieldOfView(*(side * ZOOM for side in node.GetFieldOfView()[:2]), node.GetFieldOfView()[2])
    node.JumpSliceByOffsetting(*centre)
    mapper, actor = vtk.vtkImageMapper(), vtk.vtkActor2D()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    mapper.SetInputConnection(logic.GetImageDataConnection())
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    behind = vtk.vtkRenderer()  # a layer of its own: drawn after the regions, the image would hide behind their fill
    behind.AddViewProp(actor)
    view.window.SetNumberOfLayers(2)
    view.renderer.SetLayer(1)
    view.window.AddRenderer(behind)
    return view


def three_d_view(headless: Shown, volume: Any) -> View:
    """Surfaces and boxes, seen from the front, the left and above."""
    factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
    logic = slicer.vtkMRMLViewLogic()
    headless.app.GetViewLogics().AddItem(logic)
    view = View(headless, factory, THREE_D_MANAGERS, logic)
    view.window.SetAlphaBitPlanes(1)
    view.renderer.SetUseDepthPeeling(True)
    node = logic.AddViewNode("View1")
    node.SetBoxVisible(False)
    node.SetAxisLabelsVisible(False)
    view.managers.SetMRMLDisplayableNode(node)
    view.window.Render()
    camera = view.renderer.GetActiveCamera()
    camera.SetFocalPoint(0, 0, 0)
    camera.SetPosition(-300, 500, 250)
    camera.SetViewUp(0, 0, 1)
    view.renderer.ResetCamera(bounds_of_boxes(headless.scene) or volume_bounds(volume))
    camera.Zoom(0.9)  # labels stand beside the boxes
    return view


def bounds_of_boxes(scene: Any) -> list[float]:
    """World bounds of all boxes of a scene together, or an empty list where there is none."""
    together = vtk.vtkBoundingBox()
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLMarkupsROINode")):
        bounds = [0.0] * 6
        scene.GetNthNodeByClass(index, "vtkMRMLMarkupsROINode").GetRASBounds(bounds)
        together.AddBounds(bounds)
    bounds = [0.0] * 6
    together.GetBounds(bounds)
    return bounds if together.IsValid() else []


def volume_bounds(volume: Any) -> list[float]:
    """World bounds of a volume."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    return bounds


def show_grey(volume: Any) -> None:
    """Show a volume in grey from nothing to nearly its brightest voxel."""
    from vtk.util.numpy_support import vtk_to_numpy

    voxels = vtk_to_numpy(volume.GetImageData().GetPointData().GetScalars())
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(0)
    display.SetWindowLevelMinMax(0, float(np.percentile(voxels[voxels > 0], 99.7)))
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")


def picture_of(shown: Shown, volume: Any, centre: Sequence[float], picture: Path) -> None:
    """Write three slices through a point and the 3D view, two beside two."""
    rows = vtk.vtkImageAppend()
    rows.SetAppendAxis(1)
    made = [slice_view(shown, volume, plane, centre).pixels() for plane in PLANES]
    made.append(three_d_view(shown, volume).pixels())
    for pair in (made[2:], made[:2]):  # VTK counts rows from below
        row = vtk.vtkImageAppend()
        for each in pair:
            row.AddInputData(each)
        row.Update()
        rows.AddInputData(row.GetOutput())
    picture.parent.mkdir(parents=True, exist_ok=True)
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(picture))
    writer.SetInputConnection(rows.GetOutputPort())
    writer.Write()


def render(folder: Path, background: Path, picture: Path) -> None:
    """Write the picture of an output folder over one of its sequences."""
    headless = HeadlessSlicer()
    volume = headless.load_volume(background)
    headless.load_segmentation(folder / "segmentation.seg.nrrd", volume)
    for path in sorted((folder / "boxes").glob("*.mrk.json")):
        headless.load_box(path)
    lesions = json.loads((folder / "findings.json").read_text(encoding="utf-8"))["lesions"]
    picture_of(headless, volume, lesions[0]["box"]["center_ras_mm"] if lesions else middle_of(volume), picture)


def middle_of(volume: Any) -> list[float]:
    """World RAS mm of a volume's middle."""
    bounds = volume_bounds(volume)
    return [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of an analysis")
    parser.add_argument("background", type=Path, help="NIfTI file to show behind, T1ce or FLAIR")
    parser.add_argument("picture", type=Path, help="PNG to write")
    given = parser.parse_args()
    render(given.folder, given.background, given.picture)
