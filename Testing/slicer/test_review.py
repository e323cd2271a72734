"""What a reader decides: on the nodes, through saving and loading of the scene, and out as a case and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")

from scene_helpers import farthest, rigid, shown_study, with_files  # noqa: E402

from MTMed3DCore.datalist import build_datalist  # noqa: E402
from MTMed3DCore.errors import WrongUse  # noqa: E402
from MTMed3DCore.exports.review import FORMATS  # noqa: E402
from MTMed3DCore.geometry import VoxelBox, WorldBox  # noqa: E402
from MTMed3DCore.reviewed import read_reviewed_case  # noqa: E402
from MTMed3DLib.export import export_review, open_reviewed, reviewed_case  # noqa: E402
from MTMed3DLib.nodes import along_world_axes, box_of, grid_of, ijk_to_ras, place_roi  # noqa: E402
from MTMed3DLib.review import Review  # noqa: E402
from MTMed3DLib.scene import StudyScene  # noqa: E402

ANY_STUDY = tuple(name for name in FORMATS if name != "dicom")
"""Formats for a study that came as files; DICOM's are tested in test_panel_dicom.py."""


@pytest.fixture
def scene() -> Iterator[Any]:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


def shifted(box: WorldBox, by: float) -> WorldBox:
    return WorldBox(box.center + by, box.size, box.axes)


def test_only_the_box_being_edited_has_handles(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    review = Review(study)
    first, second = study.boxes()
    review.edit(first)
    review.edit(second)
    assert review.edited_now is second
    assert not first.GetDisplayNode().GetHandlesInteractive()
    review.finish_edit()
    assert review.edited_now is None
    assert [review.state(roi) for roi in study.boxes()] == ["proposed", "proposed"]


def test_a_dragged_box_is_the_readers_with_the_time_of_it(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    review = Review(study)
    first, _ = study.boxes()
    review.edit(first)
    place_roi(first, shifted(box_of(first), 2.0))
    review.finish_edit()
    assert review.state(first) == "edited"
    assert review.decided_at(first).endswith("+00:00")
    assert study.table.GetTable().GetValueByName(0, "state").ToString() == "edited"


def test_keeping_and_rejecting_can_be_changed(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    review = Review(study)
    first, _ = study.boxes()
    assert not review.touched
    review.reject(first)
    assert (review.state(first), first.GetDisplayVisibility()) == ("rejected", 0)
    review.keep(first)
    assert (review.state(first), first.GetDisplayVisibility()) == ("kept", 1)
    assert review.touched


@pytest.mark.parametrize("transform", [None, rigid(30, (10, 20, 30))])
def test_an_added_box_lies_along_t1ce_round_the_given_point(scene: Any, tmp_path: Path, transform: Any) -> None:
    study, nodes = shown_study(scene, tmp_path, transform=transform)
    review = Review(study)
    roi = review.add_box((5.0, -3.0, 12.0))
    np.testing.assert_allclose(study.centre_on(roi), (5.0, -3.0, 12.0), atol=1e-4)
    axes, own = box_of(roi).axes, grid_of(nodes["t1ce"]).axes
    np.testing.assert_allclose(np.abs(axes @ own.T), np.eye(3), atol=1e-6)
    assert (review.state(roi), roi.GetName()) == ("added", "Lesion 3 (reader)")
    assert review.edited_now is roi


def test_a_box_fits_itself_to_the_regions_that_it_touches(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    review = Review(study)
    first, second = study.boxes()
    place_roi(first, VoxelBox((4, 5, 5), (6, 7, 7)).to_world(grid_of(nodes["t1ce"])))
    assert review.fit_box_to_region(first)
    fitted = VoxelBox((2, 3, 4), (9, 11, 10)).to_world(grid_of(nodes["t1ce"]))
    assert farthest(box_of(first).corners(), fitted.corners()) < 0.01
    assert review.state(first) == "edited"
    place_roi(second, shifted(box_of(second), 300.0))
    assert not review.fit_box_to_region(second)


def test_a_box_trims_the_regions_that_it_touches(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path)
    review = Review(study)
    first, _ = study.boxes()
    grid = grid_of(nodes["t1ce"])
    before = study.labels()
    place_roi(first, VoxelBox((2, 3, 4), (5, 11, 10)).to_world(grid))
    removed = review.region_from_box(first)
    expected = before.copy()
    expected[5:9, 3:11, 4:10] = 0
    np.testing.assert_array_equal(study.labels(), expected)
    assert removed == pytest.approx((before[5:9, 3:11, 4:10] > 0).sum() * grid.voxel_volume_ml)
    assert study.regions_edited


def test_the_regions_of_rejected_boxes_alone_are_erased(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path)
    review = Review(study)
    expected = study.labels()
    expected[14:18, 17:23, 2:5] = 0
    assert review.erase_rejected() == 0
    review.reject(study.boxes()[1])
    assert review.erase_rejected() > 0
    np.testing.assert_array_equal(study.labels(), expected)


def test_unknown_grades_and_verdicts_are_refused(scene: Any, tmp_path: Path) -> None:
    review = Review(shown_study(scene, tmp_path)[0])
    with pytest.raises(ValueError, match="'WHO 4'"):
        review.set_grade("WHO 4")
    with pytest.raises(ValueError, match="verdict is 'fine'"):
        review.verdict = "fine"
    review.set_grade("LGG")
    review.clear_grade()
    assert review.grade is None
    assert review.study.grade_text.GetText().startswith("Grade by the model")


def reviewed(scene: Any, folder: Path, **options: Any) -> Review:
    """A study with one box edited, one rejected, one added, one region corrected, and the grade overridden."""
    study, _ = shown_study(scene, folder, **options)
    review = Review(study)
    first, second = study.boxes()
    place_roi(first, shifted(box_of(first), 1.5))
    review.reject(second)
    added = review.add_box(study.centre_on(first) + 8.0)
    review.finish_edit()
    labels = study.labels()
    labels[10:12, 10:12, 8:10] = 4
    review.write_labels(labels)
    review.set_grade("LGG")
    review.verdict, review.difficulty, review.comment = "accept after correction", "hard", 'unclear "rim", é'
    assert review.state(added) == "added"
    return review


def test_every_mark_of_the_reader_survives_saving_and_loading_the_scene(scene: Any, tmp_path: Path) -> None:
    kept = with_files(scene)
    review = reviewed(scene, tmp_path / "result")
    labels = along_world_axes(review.study.labels(), ijk_to_ras(review.study.t1ce))
    untouched, _ = shown_study(scene, tmp_path / "untouched", study_id="case 2")
    corners = [box_of(roi).corners() for roi in review.study.boxes()]
    assert not untouched.regions_edited
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    other = slicer.vtkMRMLScene()
    kept_too = with_files(other)
    assert other.ReadFromMRB(str(tmp_path / "scene.mrb"))
    study, second = StudyScene.find(other)
    assert not Review(second).touched
    again = Review(study)
    assert [again.state(roi) for roi in study.boxes()] == ["edited", "rejected", "added"]
    np.testing.assert_array_equal(along_world_axes(study.labels(), ijk_to_ras(study.t1ce)), labels)
    for roi, before in zip(study.boxes(), corners, strict=True):
        assert farthest(box_of(roi).corners(), before) < 0.01
    assert study.regions_edited
    assert (again.grade, again.verdict, again.difficulty) == ("LGG", "accept after correction", "hard")
    assert again.comment == 'unclear "rim", é'
    assert study.findings.model.name == "starter"
    assert all(volume is not None for volume in study.volumes().values())
    assert kept
    assert kept_too


@pytest.mark.parametrize("transform", [None, rigid(30, (10, 20, 30))])
def test_an_exported_case_reads_back_as_the_scene_shows_it(scene: Any, tmp_path: Path, transform: Any) -> None:
    review = reviewed(scene, tmp_path / "result", transform=transform)
    study = review.study
    export_review(review, tmp_path / "out", ANY_STUDY)
    case = read_reviewed_case(tmp_path / "out")
    np.testing.assert_array_equal(case.labels, study.labels())
    assert [(each.state, each.by) for each in case.boxes] == [
        ("edited", "reader"),
        ("rejected", "reader"),
        ("added", "reader"),
    ]
    for each, roi in zip(case.boxes, study.boxes(), strict=True):
        assert farthest(each.box.corners(), box_of(roi).corners()) < 0.01
    assert (case.grade, case.grade_by, case.probability_hgg) == ("LGG", "reader", 0.93)
    assert (case.regions_by, case.verdict, case.comment) == ("reader", "accept after correction", 'unclear "rim", é')
    assert case.grid.same_as(grid_of(study.t1ce))


def test_every_export_format_gives_its_files_without_the_rejected_box(scene: Any, tmp_path: Path) -> None:
    review = reviewed(scene, tmp_path / "result")
    export_review(review, tmp_path / "out", ANY_STUDY)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names >= {"case.json", "seg.nii.gz", "segmentation.seg.nrrd", "segmentation.nii.gz", "report.html"}
    assert {name for name in names if name.startswith("boxes/")} == {
        "boxes/lesion-1.mrk.json",
        "boxes/lesion-3.mrk.json",
    }
    with (tmp_path / "out" / "measurements.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["state"] for row in rows] == ["", "edited", "rejected", "added"]
    assert rows[0]["grade"] == "LGG"
    assert float(rows[0]["whole_tumour_ml"]) == pytest.approx(review.study.volumes_ml()["whole_tumour"], abs=1e-3)


def test_a_model_result_that_nobody_touched_says_so(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path / "result")
    case = reviewed_case(Review(study))
    assert (case.grade_by, case.regions_by) == ("model", "model")
    assert {each.by for each in case.boxes} == {"model"}


def test_an_export_does_not_replace_files_unasked(scene: Any, tmp_path: Path) -> None:
    review = reviewed(scene, tmp_path / "result")
    export_review(review, tmp_path / "out", ["training_case"])
    with pytest.raises(WrongUse, match="out"):
        export_review(review, tmp_path / "out", ["training_case"])
    review.set_grade("HGG")
    export_review(review, tmp_path / "out", ["training_case"], overwrite=True)
    assert json.loads((tmp_path / "out" / "case.json").read_text())["grade"]["label"] == "HGG"


def test_a_study_whose_volumes_are_gone_is_not_exported(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path / "result")
    scene.RemoveNode(nodes["flair"])
    with pytest.raises(ValueError, match="FLAIR is no longer in the scene"):
        export_review(Review(study), tmp_path / "out", ["nifti"])
    assert not (tmp_path / "out").exists()


def test_an_opened_case_is_what_was_exported(scene: Any, tmp_path: Path) -> None:
    before = reviewed(scene, tmp_path / "result")
    export_review(before, tmp_path / "out", ["training_case"])
    other = slicer.vtkMRMLScene()
    study = open_reviewed(other, tmp_path / "out")
    after = Review(study)
    assert [after.state(roi) for roi in study.boxes()] == ["edited", "rejected", "added"]
    assert [study.score(roi) for roi in study.boxes()] == pytest.approx([0.97, 0.485, None])
    np.testing.assert_array_equal(study.labels(), before.study.labels())
    assert (after.grade, after.verdict, after.comment) == ("LGG", before.verdict, before.comment)
    assert study.regions_edited
    export_review(after, tmp_path / "again", ["training_case"])
    first, second = (json.loads((tmp_path / name / "case.json").read_text()) for name in ("out", "again"))
    for document in (first, second):
        document.pop("created")
    assert [each["state"] for each in first["boxes"]] == [each["state"] for each in second["boxes"]]
    for one, two in zip(first["boxes"], second["boxes"], strict=True):
        assert one["center_ras_mm"] == pytest.approx(two["center_ras_mm"], abs=1e-4)
    assert first["grade"] == second["grade"]
    assert first["findings"] == second["findings"]
    assert open_reviewed(other, tmp_path / "out").study_id == "case 1 2"


def test_an_exported_case_joins_a_data_list_with_the_readers_boxes_and_grade(scene: Any, tmp_path: Path) -> None:
    review = reviewed(scene, tmp_path / "result")
    export_review(review, tmp_path / "cases" / "one", ["training_case"])
    (case,) = build_datalist([tmp_path / "cases"], folds=0).cases
    assert (case.id, case.grade, len(case.boxes)) == ("case 1", "LGG", 2)
    assert "reader" in case.source
    np.testing.assert_allclose(case.boxes[0].center, box_of(review.study.boxes()[0]).center, atol=1e-3)
