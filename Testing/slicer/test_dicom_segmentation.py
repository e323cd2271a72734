"""The DICOM segmentation lies on its source in 3D Slicer: each read by another reader, on a geometry of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")
vtk = pytest.importorskip("vtk", reason="vtk is not installed")
if not hasattr(slicer, "vtkMRMLScene"):
    pytest.skip("the module named slicer is not slicer-core", allow_module_level=True)
highdicom = pytest.importorskip("highdicom", reason="needs the extra `dicom`")

import SimpleITK as sitk  # noqa: E402
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy  # noqa: E402

from MTMed3DCore.dicom import scan  # noqa: E402
from MTMed3DCore.exports.dicom_seg import KINDS, write_dicom_seg  # noqa: E402
from MTMed3DCore.exports.dicom_source import sources_of  # noqa: E402
from MTMed3DCore.findings import Findings, ModelIdentity  # noqa: E402
from MTMed3DCore.geometry import FloatArray  # noqa: E402
from Testing.awkward_grids import oblique_affine  # noqa: E402
from Testing.dicom_series import PARAMETERS, Examination, write_series  # noqa: E402
from Testing.slicer.scene_helpers import matrix_of  # noqa: E402

SHAPE = (24, 20, 10)
AFFINES = {
    "axial": np.array([[-1.0, 0, 0, 12], [0, -1, 0, 10], [0, 0, 1, -9], [0, 0, 0, 1]]),
    "oblique": oblique_affine(),
    "flipped column": np.array([[-1.0, 0, 0, 12], [0, 1, 0, -10], [0, 0, 3, -9], [0, 0, 0, 1]]),
    "5 mm": np.array([[-0.9, 0, 0, 12], [0, -0.9, 0, 10], [0, 0, 5, -9], [0, 0, 0, 1]]),
}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FLAGS = {"necrotic core": (1000, 1), "oedema": (2000, 2), "enhancing": (3000, 3)}
"""Grey value of each region in the source, and the number of its segment."""


class StudyOnPaper:
    """What the writers need of a study: its DICOM series."""

    def __init__(self, folder: Path) -> None:
        self.series = {name: series for series in scan(folder) if (name := series.verdict.sequence)}


@pytest.fixture
def scene() -> Any:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


def drawn() -> np.ndarray:
    """A tumour without any symmetry, drawn in grey values that tell its regions."""
    array = np.full(SHAPE, 10, np.int32)
    array[3:12, 5:15, 2:8] = FLAGS["oedema"][0]
    array[4:9, 6:12, 3:6] = FLAGS["enhancing"][0]
    array[5:7, 8:10, 4:5] = FLAGS["necrotic core"][0]
    array[20, 1, 8] = FLAGS["oedema"][0]  # a corner that a flip would move
    return array


def analysed(folder: Path, affine: np.ndarray) -> Findings:
    """The source series on disk, and findings whose labels follow its grey values."""
    array, examination = drawn(), Examination("P77")
    write_series(folder / "a", array, affine, examination, number=1, **PARAMETERS["t1ce"])
    study = StudyOnPaper(folder)
    source = study.series["t1ce"].read()
    labels = np.zeros(source.grid.shape, np.uint8)
    for label, region in ((1, "necrotic core"), (2, "oedema"), (4, "enhancing")):
        labels[source.array == FLAGS[region][0]] = label
    model = ModelIdentity("starter", "1.0", "ab" * 32, "synthetic studies")
    return Findings("case", {}, source.grid, labels, (), None, model, software={"mtmed3d": "0.1.0"}, study=study)


def read_with_itk(folder: Path) -> sitk.Image:
    """The source through ITK's reader, which knows nothing of ours."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def itk_affine(image: sitk.Image) -> FloatArray:
    """Voxel (column, row, slice) to RAS mm."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS @ affine


def put(scene: Any, kind: str, name: str, array: np.ndarray, affine: FloatArray) -> Any:
    """An array (X, Y, Z) as a volume node."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array.T).ravel(), deep=True))
    node = scene.AddNewNodeByClass(kind, name)
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(matrix_of(affine))
    return node


def put_source(scene: Any, folder: Path) -> Any:
    image = read_with_itk(folder)
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.int16)
    return put(scene, "vtkMRMLScalarVolumeNode", "T1ce", array, itk_affine(image))


def put_segmentation(scene: Any, path: Path) -> Any:
    """Through highdicom, with the geometry that the object itself states."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True, relabel=False)
    affine = LPS @ volume.affine[:, [2, 1, 0, 3]]  # highdicom counts slices, rows, columns
    labels = volume.array.transpose(2, 1, 0).astype(np.uint8)
    return put(scene, "vtkMRMLLabelMapVolumeNode", "segmentation", labels, affine)


def values_of(node: Any) -> np.ndarray:
    image = node.GetImageData()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1]).T


def ijk_to_ras(node: Any) -> FloatArray:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def places(node: Any, inside: np.ndarray) -> FloatArray:
    """World positions (N, 3) of voxels in RAS mm, in a fixed order."""
    affine = ijk_to_ras(node)
    points = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    return points[np.lexsort(np.round(points, 3).T)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", AFFINES)
def test_every_segment_lies_on_the_voxels_that_it_was_drawn_on(
    scene: Any, tmp_path: Path, name: str, kind: str
) -> None:
    findings = analysed(tmp_path / "source", AFFINES[name])
    write_dicom_seg(findings, tmp_path / "seg.dcm", sources_of(findings), kind)
    source = put_source(scene, tmp_path / "source" / "a")
    segmentation = put_segmentation(scene, tmp_path / "seg.dcm")
    for grey, segment in FLAGS.values():
        there, drawn_there = values_of(segmentation) == segment, values_of(source) == grey
        assert there.sum() == drawn_there.sum() > 0
        np.testing.assert_allclose(places(segmentation, there), places(source, drawn_there), atol=1e-3)


@pytest.mark.parametrize("name", AFFINES)
def test_as_a_segmentation_node_it_fills_the_source_voxel_for_voxel(scene: Any, tmp_path: Path, name: str) -> None:
    findings = analysed(tmp_path / "source", AFFINES[name])
    write_dicom_seg(findings, tmp_path / "seg.dcm", sources_of(findings), "BINARY")
    source = put_source(scene, tmp_path / "source" / "a")
    labelmap = put_segmentation(scene, tmp_path / "seg.dcm")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "SEG")
    node.SetReferenceImageGeometryParameterFromVolumeNode(source)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.ImportLabelmapToSegmentationNode(labelmap, node)
    back = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "on the source")
    ids = vtk.vtkStringArray()
    node.GetSegmentation().GetSegmentIDs(ids)
    assert logic.ExportSegmentsToLabelmapNode(node, ids, back, source)
    np.testing.assert_allclose(ijk_to_ras(back), ijk_to_ras(source), atol=1e-4)
    expected = np.zeros(values_of(source).shape, np.uint8)
    for grey, segment in FLAGS.values():
        expected[values_of(source) == grey] = segment
    np.testing.assert_array_equal(values_of(back), expected)
