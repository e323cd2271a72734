"""Results in a real MRML scene: in their place, ours alone, and never at the cost of a reader's work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")

from scene_helpers import add_volume, farthest, rigid, shown_study, world_corners  # noqa: E402

from MTMed3DCore.exports import write_findings  # noqa: E402
from MTMed3DCore.geometry import WorldBox  # noqa: E402
from MTMed3DLib.attributes import PROPOSED  # noqa: E402
from MTMed3DLib.nodes import box_of, place_roi, same_place  # noqa: E402
from MTMed3DLib.review import Review  # noqa: E402
from MTMed3DLib.scene import StudyScene  # noqa: E402
from Testing.example_findings import GRIDS, findings_on  # noqa: E402


@pytest.fixture
def scene() -> Any:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


@pytest.mark.parametrize("grid", list(GRIDS))
def test_regions_and_boxes_lie_where_the_findings_say(scene: Any, tmp_path: Path, grid: str) -> None:
    study, _ = shown_study(scene, tmp_path, grid)
    expected = findings_on(GRIDS[grid], with_study=False)
    np.testing.assert_array_equal(study.labels(), expected.labels)
    for roi, lesion in zip(study.boxes(), expected.lesions, strict=True):
        assert farthest(world_corners(roi), lesion.box.corners()) < 0.01
    assert study.volumes_ml() == pytest.approx(expected.volumes_ml)


def test_results_follow_the_parent_transform_of_t1ce(scene: Any, tmp_path: Path) -> None:
    transform = rigid(25, (12, -40, 7))
    study, nodes = shown_study(scene, tmp_path, transform=transform)
    expected = findings_on(GRIDS["oblique, left-handed"], with_study=False)
    np.testing.assert_array_equal(study.labels(), expected.labels)
    for roi, lesion in zip(study.boxes(), expected.lesions, strict=True):
        moved = lesion.box.corners() @ transform[:3, :3].T + transform[:3, 3]
        assert farthest(world_corners(roi), moved) < 0.01
        middle = transform[:3, :3] @ lesion.box.center + transform[:3, 3]
        np.testing.assert_allclose(study.centre_on(roi), middle, atol=1e-4)
    assert study.segmentation.GetTransformNodeID() == nodes["t1ce"].GetTransformNodeID()


def test_nodes_are_named_tagged_coloured_and_filed_in_one_folder(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    assert [roi.GetName() for roi in study.boxes()] == ["Lesion 1 (0.97)", "Lesion 2 (0.48)"]
    segmentation = study.segmentation.GetSegmentation()
    assert [segmentation.GetNthSegment(n).GetName() for n in range(3)] == [
        "Necrotic core",
        "Oedema",
        "Enhancing tumour",
    ]
    assert not any(roi.GetDisplayNode().GetHandlesInteractive() for roi in study.boxes())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(roi)) for roi in study.boxes()}
    parents.add(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(study.segmentation)))
    assert [hierarchy.GetItemName(item) for item in parents] == ["MTMed3D case 1"]


def test_the_table_and_the_grade_say_what_was_found(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path, "axial")
    table = study.table.GetTable()
    assert (table.GetNumberOfRows(), table.GetValueByName(0, "score").ToString()) == (2, "0.97")
    assert table.GetValueByName(0, "size mm").ToString() == "7 x 8 x 6"
    assert table.GetValueByName(0, "whole tumour ml").ToString() == "0.3"
    assert "HGG, probability of high grade 0.93 (starter 1.0)" in study.grade_text.GetText()


def test_twenty_analyses_in_a_row_leave_as_many_nodes_as_one(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    before = scene.GetNumberOfNodes()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = hierarchy.GetNumberOfItems()
    for _ in range(20):
        assert study.show(tmp_path, nodes["t1ce"], nodes) == []
    assert scene.GetNumberOfNodes() == before
    assert hierarchy.GetNumberOfItems() == items


def test_a_further_analysis_keeps_what_the_reader_did_and_says_so(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path, "axial")
    first, second = study.boxes()
    review = Review(study)
    review.reject(second)
    moved = box_of(first)
    place_roi(first, WorldBox(moved.center + np.array([1.0, 0.0, 0.5]), moved.size, moved.axes))
    labels = study.labels()
    labels[0:2, 0:2, 0:2] = 4
    review.write_labels(labels)
    review.set_grade("LGG")
    kept = study.show(tmp_path, nodes["t1ce"], nodes)
    assert any("edited regions were kept" in text for text in kept)
    assert any("2 boxes of the reader were kept, 2 of them found again" in text for text in kept)
    assert [study.state(roi) for roi in study.boxes()] == ["edited", "rejected"]
    np.testing.assert_allclose(box_of(study.boxes()[0]).center, moved.center + np.array([1.0, 0.0, 0.5]), atol=1e-6)
    np.testing.assert_array_equal(study.labels(), labels)
    assert review.grade == "LGG"
    assert study.grade_text.GetText().startswith("Grade by the reader: LGG")


def test_new_lesions_join_kept_ones_under_free_numbers(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path, "axial")
    first, _ = study.boxes()
    box = box_of(first)
    place_roi(first, WorldBox(box.center + 60.0, box.size, box.axes))
    study.show(tmp_path, nodes["t1ce"], nodes)
    assert [roi.GetAttribute("MTMed3D.Lesion") for roi in study.boxes()] == ["1", "2", "3"]
    assert [study.state(roi) for roi in study.boxes()].count(PROPOSED) == 2


def test_nodes_of_others_are_never_touched(scene: Any, tmp_path: Path) -> None:
    theirs = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "theirs")
    theirs.CreateDefaultDisplayNodes()
    study, nodes = shown_study(scene, tmp_path)
    study.set_confidence(2.0)
    assert theirs.GetName() == "theirs"
    assert theirs.GetDisplayVisibility()
    study.remove()
    assert scene.GetNodeByID(theirs.GetID()) is not None
    assert scene.GetNodeByID(nodes["t1"].GetID()) is not None
    assert StudyScene.find(scene) == []


def test_the_confidence_hides_proposed_boxes_below_it_and_no_others(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    first, second = study.boxes()
    assert study.set_confidence(0.5) == 1
    assert (first.GetDisplayVisibility(), second.GetDisplayVisibility()) == (1, 0)
    Review(study).keep(second)
    assert study.set_confidence(0.99) == 1
    assert (first.GetDisplayVisibility(), second.GetDisplayVisibility()) == (0, 1)
    Review(study).reject(second)
    assert study.set_confidence(0.0) == 1


def test_two_studies_in_one_scene_do_not_mix(scene: Any, tmp_path: Path) -> None:
    first, _ = shown_study(scene, tmp_path / "a", "axial")
    grid = GRIDS["oblique"]
    write_findings(findings_on(grid, with_study=False), tmp_path / "b")
    second = StudyScene(scene, "case 2")
    second.show(tmp_path / "b", add_volume(scene, "other", grid))
    assert {study.study_id for study in StudyScene.find(scene)} == {"case 1", "case 2"}
    second.remove()
    assert len(first.boxes()) == 2


def test_a_study_without_tumour_shows_empty_regions_and_no_box(scene: Any, tmp_path: Path) -> None:
    grid = GRIDS["oblique"]
    write_findings(findings_on(grid, tumour=False, with_study=False), tmp_path)
    study = StudyScene(scene, "healthy")
    study.show(tmp_path, add_volume(scene, "T1ce", grid))
    assert study.boxes() == []
    assert not study.labels().any()
    assert "no grade" in study.grade_text.GetText()
    assert not study.regions_edited


def test_boxes_that_hold_each_others_middle_are_one_lesion() -> None:
    def box(at: float, side: float) -> WorldBox:
        return WorldBox(np.full(3, at), np.full(3, side), np.eye(3))

    assert same_place(box(0, 10), box(4, 10))
    assert not same_place(box(0, 10), box(6, 10))
    assert not same_place(box(0, 100), box(30, 10))


@pytest.mark.parametrize(("threshold", "starts"), [(0.1, 0.1), (0.9, 0.48), (None, 0.48)])
def test_the_confidence_starts_where_nothing_that_the_model_reports_is_hidden(
    scene: Any, tmp_path: Path, threshold: float | None, starts: float
) -> None:
    study, nodes = shown_study(scene, tmp_path)
    study.show(tmp_path, nodes["t1ce"], nodes, threshold)
    assert [study.score(roi) for roi in study.boxes()] == pytest.approx([0.97, 0.485])
    assert study.lowest_confidence == pytest.approx(starts)
    assert study.set_confidence(study.lowest_confidence) == 2
