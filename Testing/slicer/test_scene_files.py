"""What 3D Slicer's own MRML reads from an analysis' files. Needs the ``slicer-core`` wheel, not the application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")
vtk = pytest.importorskip("vtk", reason="vtk is not installed")
if not hasattr(slicer, "vtkMRMLScene"):
    pytest.skip("the module named slicer is not slicer-core", allow_module_level=True)

from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from MTMed3DCore.exports import write_findings  # noqa: E402
from MTMed3DCore.exports.regions import REGIONS  # noqa: E402
from MTMed3DCore.findings import Findings  # noqa: E402
from Testing.example_findings import GRIDS, findings_on  # noqa: E402


@pytest.fixture
def scene() -> Any:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


@pytest.fixture(params=list(GRIDS))
def findings(request: pytest.FixtureRequest) -> Findings:
    return findings_on(GRIDS[request.param], with_study=False)


def load_segmentation(scene: Any, path: Path) -> Any:
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    return node


def load_box(scene: Any, path: Path) -> Any:
    """Through the logic that dropping a file onto the application calls."""
    logic = slicer.vtkSlicerMarkupsLogic()
    logic.SetMRMLScene(scene)
    node = scene.GetNodeByID(logic.LoadMarkups(str(path), path.name.removesuffix(".mrk.json")))
    assert node is not None
    return node


def matrix_of(matrix: Any) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def segment_voxels(segment: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mask (X, Y, Z) of a segment over its whole extent, and its voxel-to-RAS matrix."""
    image = segment.GetRepresentation("Binary labelmap")
    extent, matrix = image.GetExtent(), vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    assert extent[::2] == (0, 0, 0)
    sizes = [extent[2 * axis + 1] + 1 for axis in range(3)]
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(sizes[::-1]).T
    return values == segment.GetLabelValue(), matrix_of(matrix)


def test_slicer_loads_the_same_voxels_at_the_same_place(scene: Any, findings: Findings, tmp_path: Path) -> None:
    write_findings(findings, tmp_path)
    segmentation = load_segmentation(scene, tmp_path / "segmentation.seg.nrrd").GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 3
    for region in REGIONS:
        mask, matrix = segment_voxels(segmentation.GetSegment(region.key))
        np.testing.assert_array_equal(mask, findings.labels == region.label)
        np.testing.assert_allclose(matrix, findings.grid.affine, atol=1e-4)


def test_slicer_shows_the_names_colours_and_terminology(scene: Any, tmp_path: Path) -> None:
    write_findings(findings_on(GRIDS["oblique"]), tmp_path)
    segmentation = load_segmentation(scene, tmp_path / "segmentation.seg.nrrd").GetSegmentation()
    for region in REGIONS:
        segment, entry = segmentation.GetSegment(region.key), vtk.reference("")
        assert segment.GetName() == region.name
        np.testing.assert_allclose(segment.GetColor(), region.rgb, atol=1e-5)
        assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
        assert str(entry) == region.terminology_entry


def test_slicer_reads_our_terminology_codes(tmp_path: Path) -> None:
    logic, entry = slicer.vtkSlicerTerminologiesModuleLogic, slicer.vtkSlicerTerminologyEntry()
    read = []
    for region in REGIONS:
        assert logic.DeserializeTerminologyEntry(region.terminology_entry, entry)
        kind, place = entry.GetTypeObject(), entry.GetRegionObject() or entry.GetAnatomicRegionObject()
        read.append((kind.GetCodingSchemeDesignator(), kind.GetCodeValue(), place.GetCodeMeaning()))
    assert read == [("SCT", "6574001", "Brain"), ("SCT", "79654002", "Brain"), ("NCIt", "C113842", "Brain")]


def test_slicer_edits_on_the_grid_of_the_t1ce_volume(scene: Any, findings: Findings, tmp_path: Path) -> None:
    write_findings(findings, tmp_path)
    segmentation = load_segmentation(scene, tmp_path / "segmentation.seg.nrrd").GetSegmentation()
    converter = slicer.vtkSegmentationConverter
    geometry = segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    image, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    assert converter.DeserializeImageGeometry(geometry, image, False)
    image.GetImageToWorldMatrix(matrix)
    assert image.GetDimensions() == findings.grid.shape
    np.testing.assert_allclose(matrix_of(matrix), findings.grid.affine, atol=1e-6)


def test_slicer_places_the_corners_of_every_box(scene: Any, findings: Findings, tmp_path: Path) -> None:
    write_findings(findings, tmp_path)
    for lesion in findings.lesions:
        roi = load_box(scene, tmp_path / "boxes" / f"lesion-{lesion.id}.mrk.json")
        matrix = matrix_of(roi.GetObjectToWorldMatrix())
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
        corners = matrix[:3, 3] + (signs * np.array(roi.GetSize()) / 2) @ matrix[:3, :3].T
        distances = np.linalg.norm(corners[:, None] - lesion.box.corners(), axis=-1)
        assert distances.min(axis=0).max() < 0.01
        assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1.0)


def test_boxes_arrive_named_with_their_score_and_without_handles(scene: Any, tmp_path: Path) -> None:
    write_findings(findings_on(GRIDS["oblique"]), tmp_path)
    roi = load_box(scene, tmp_path / "boxes" / "lesion-1.mrk.json")
    assert roi.GetName() == "Lesion 1 (0.97)"
    assert roi.GetROIType() == slicer.vtkMRMLMarkupsROINode.ROITypeBox
    assert roi.GetNumberOfControlPoints() == 1
    assert "research use only" in roi.GetNthControlPointDescription(0)
    assert not roi.GetDisplayNode().GetHandlesInteractive()


def test_a_tumour_free_study_loads_as_three_empty_regions(scene: Any, tmp_path: Path) -> None:
    write_findings(findings_on(GRIDS["oblique, left-handed"], tumour=False), tmp_path)
    segmentation = load_segmentation(scene, tmp_path / "segmentation.seg.nrrd").GetSegmentation()
    masks = [segment_voxels(segmentation.GetSegment(region.key))[0] for region in REGIONS]
    assert [mask.any() for mask in masks] == [False, False, False]
