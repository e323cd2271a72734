"""Results keep their place and a reader's work whatever happens to the volumes, their transforms and the scene file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")

import vtk  # noqa: E402
from scene_helpers import (  # noqa: E402
    add_transform,
    add_volume,
    farthest,
    rigid,
    shown_study,
    with_files,
    world_corners,
)

from MTMed3DCore.exports import write_findings  # noqa: E402
from MTMed3DCore.geometry import Grid, WorldBox  # noqa: E402
from MTMed3DLib.export import reviewed_case  # noqa: E402
from MTMed3DLib.nodes import array_of, box_of, ijk_to_ras, oriented_image, place_roi  # noqa: E402
from MTMed3DLib.review import Review  # noqa: E402
from MTMed3DLib.scene import StudyScene  # noqa: E402
from Testing.example_findings import GRIDS, SHAPE, findings_on, rotation  # noqa: E402


@pytest.fixture
def scene() -> Iterator[Any]:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


def grid_with(spacing: tuple[float, float, float], turned: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*turned) * spacing
    affine[:3, 3] = (-31.5, 12.25, 77.0)
    return Grid(SHAPE, affine)


def reloaded(scene: Any, path: Path) -> tuple[Any, Any]:
    """The scene after saving it to an .mrb file and loading that; the second value keeps the logics alive."""
    kept = with_files(scene)
    assert scene.WriteToMRB(str(path))
    other = slicer.vtkMRMLScene()
    kept_too = with_files(other)
    assert other.ReadFromMRB(str(path))
    return other, (kept, kept_too)


@pytest.mark.parametrize("transform", [None, rigid(30, (10, 20, 30))], ids=["alone", "under a transform"])
@pytest.mark.parametrize(
    "grid",
    [grid_with((0.75, 0.75, 0.75)), grid_with((0.43, 0.47, 0.93)), grid_with((0.45, 0.45, 3.3), (31, -12, 77))],
    ids=["halves of hundredths", "hundredths", "oblique"],
)
def test_what_nobody_touched_is_untouched_after_saving_and_loading(
    scene: Any, tmp_path: Path, grid: Grid, transform: Any
) -> None:
    study, _ = shown_study(scene, tmp_path / "result", grid, transform)
    before = [world_corners(roi) for roi in study.boxes()]
    other, _logics = reloaded(scene, tmp_path / "scene.mrb")
    (again,) = StudyScene.find(other)
    assert [again.state(roi) for roi in again.boxes()] == ["proposed", "proposed"]
    assert not again.regions_edited
    np.testing.assert_array_equal(again.labels(), study.labels())
    for roi, corners in zip(again.boxes(), before, strict=True):
        assert farthest(world_corners(roi), corners) < 0.01


@pytest.mark.parametrize("transform", [None, rigid(25, (12, -40, 7))], ids=["alone", "under a transform"])
def test_edits_and_files_lie_on_the_grid_of_t1ce(scene: Any, tmp_path: Path, transform: Any) -> None:
    study, nodes = shown_study(scene, tmp_path, transform=transform)
    converter, image, matrix = slicer.vtkSegmentationConverter, slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    name = converter.GetReferenceImageGeometryParameterName()
    geometry = study.segmentation.GetSegmentation().GetConversionParameter(name)
    assert converter.DeserializeImageGeometry(geometry, image, False)
    image.GetImageToWorldMatrix(matrix)
    assert image.GetDimensions() == SHAPE
    np.testing.assert_allclose(array_of(matrix), ijk_to_ras(nodes["t1ce"]), atol=1e-4)


@pytest.mark.parametrize("angle", [30, 170])
def test_hardening_the_transform_of_the_volumes_moves_no_result(scene: Any, tmp_path: Path, angle: float) -> None:
    study, nodes = shown_study(scene, tmp_path, transform=rigid(angle, (10, 20, 30)))
    labels, corners = study.labels(), [world_corners(roi) for roi in study.boxes()]
    for node in nodes.values():
        node.HardenTransform()
    np.testing.assert_array_equal(study.labels(), labels)
    assert not study.regions_edited
    case = reviewed_case(Review(study))
    for each, before in zip(case.boxes, corners, strict=True):
        assert farthest(each.box.corners(), before) < 0.01


def test_boxes_leave_as_the_scene_shows_them_over_a_volume_that_was_moved_since(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    late = rigid(20, (5, 5, 5))
    parent = add_transform(scene, "registration made later", late)
    for node in nodes.values():
        node.SetAndObserveTransformNodeID(parent.GetID())
    for each, roi in zip(reviewed_case(Review(study)).boxes, study.boxes(), strict=True):
        shown = each.box.corners() @ late[:3, :3].T + late[:3, 3]
        assert farthest(shown, world_corners(roi)) < 0.01


def test_a_scaling_transform_scales_the_boxes(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path, transform=np.diag([2.0, 2.0, 2.0, 1.0]))
    lesions = findings_on(GRIDS["oblique, left-handed"], with_study=False).lesions
    for roi, lesion in zip(study.boxes(), lesions, strict=True):
        assert farthest(world_corners(roi), lesion.box.corners() * 2) < 0.01
        assert box_of(roi, scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")).size == pytest.approx(
            lesion.box.size * 2
        )


def test_edited_regions_survive_the_loss_of_the_volume_and_a_new_analysis(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    labels = study.labels()
    labels[0:2, 0:2, 0:2] = 4
    Review(study).write_labels(labels)
    scene.RemoveNode(nodes["t1ce"])
    np.testing.assert_array_equal(study.labels(), labels)
    new = add_volume(scene, "T1CE again", GRIDS["oblique, left-handed"])
    kept = study.show(tmp_path, new, {**nodes, "t1ce": new})
    assert any("edited regions were kept" in text for text in kept)
    np.testing.assert_array_equal(study.labels(), labels)


def test_a_segment_of_the_readers_own_survives_a_further_analysis(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    segmentation = study.segmentation.GetSegmentation()
    segmentation.AddEmptySegment("cyst", "Cyst")
    mask = oriented_image(np.ones(SHAPE, np.uint8), ijk_to_ras(nodes["t1ce"]))
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(mask, study.segmentation, "cyst")
    assert study.regions_edited
    study.show(tmp_path, nodes["t1ce"], nodes)
    assert segmentation.GetSegment("cyst") is not None


def test_a_segment_that_the_reader_removed_does_not_come_back(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    study.segmentation.GetSegmentation().RemoveSegment("necrotic_core")
    study.show(tmp_path, nodes["t1ce"], nodes)
    assert set(np.unique(study.labels())) == {0, 2, 4}


def test_a_box_that_is_being_dragged_survives_a_further_analysis_with_its_time(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    review, first = Review(study), study.boxes()[0]
    review.edit(first)
    box = box_of(first)
    place_roi(first, WorldBox(box.center + 1.0, box.size, box.axes))
    study.show(tmp_path, nodes["t1ce"], nodes)
    assert review.state(study.boxes()[0]) == "edited"
    assert review.decided_at(study.boxes()[0]).endswith("+00:00")


def test_a_box_that_was_dragged_flat_can_still_be_measured(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    study.boxes()[0].SetSize(0, 5, 5)
    assert study.rows()[0]["size mm"] == "0 x 5 x 5"
    assert study.rows()[0]["state"] == "edited"


def test_a_result_of_another_grid_is_refused_and_changes_nothing(scene: Any, tmp_path: Path) -> None:
    write_findings(findings_on(GRIDS["axial"], with_study=False), tmp_path)
    t1ce = add_volume(scene, "moved since", GRIDS["oblique"])
    before = scene.GetNumberOfNodes()
    with pytest.raises(ValueError, match="moved since"):
        StudyScene(scene, "case 1").show(tmp_path, t1ce)
    assert scene.GetNumberOfNodes() == before


def test_a_kept_box_is_kept_in_the_table_at_once(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    Review(study).keep(study.boxes()[0])
    assert study.table.GetTable().GetValueByName(0, "state").ToString() == "kept"


def test_a_reading_of_a_study_without_tumour_survives_saving_and_loading(scene: Any, tmp_path: Path) -> None:
    grid = GRIDS["oblique"]
    write_findings(findings_on(grid, tumour=False, with_study=False), tmp_path / "result")
    StudyScene(scene, "healthy").show(tmp_path / "result", add_volume(scene, "T1ce", grid))
    other, _logics = reloaded(scene, tmp_path / "scene.mrb")
    (again,) = StudyScene.find(other)
    assert not Review(again).touched
