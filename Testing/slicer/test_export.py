"""Exports of a reviewed study: each form alone, without names of persons, with the time of every decision."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="the slicer-core wheel (extra 'slicer') is not installed")

from scene_helpers import SEQUENCES, add_volume, shown_study  # noqa: E402

from MTMed3DCore.errors import WrongUse  # noqa: E402
from MTMed3DCore.exports import write_findings  # noqa: E402
from MTMed3DCore.reviewed import read_reviewed_case  # noqa: E402
from MTMed3DLib.background import Stopped  # noqa: E402
from MTMed3DLib.export import (  # noqa: E402
    export_review,
    open_reviewed,
    reviewed_case,
    show_reviewed,
    write_case,
)
from MTMed3DLib.nodes import grid_of, ijk_to_ras, oriented_image, voxels_of  # noqa: E402
from MTMed3DLib.review import Review  # noqa: E402
from MTMed3DLib.scene import StudyScene  # noqa: E402
from Testing.example_findings import GRIDS, SHAPE, findings_on  # noqa: E402

FILES = {
    "training_case": {"case.json", "seg.nii.gz", *(f"{name}.nii.gz" for name in SEQUENCES)},
    "seg_nrrd": {"segmentation.seg.nrrd"},
    "nifti": {"segmentation.nii.gz"},
    "markups": {"boxes/lesion-1.mrk.json", "boxes/lesion-2.mrk.json"},
    "csv": {"measurements.csv"},
    "report": {"report.html", "report.pdf", "preview.png"},
}
FORMATS = tuple(FILES)
"""All but DICOM, whose objects need a study that came as DICOM; see test_panel_dicom.py."""


@pytest.fixture
def scene() -> Iterator[Any]:
    scene = slicer.vtkMRMLScene()
    yield scene
    scene.Clear(1)


def files_in(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".")}


@pytest.mark.parametrize("form", FORMATS)
def test_each_form_alone_gives_its_own_files_and_replaces_them_when_told(scene: Any, tmp_path: Path, form: str) -> None:
    review = Review(shown_study(scene, tmp_path / "result")[0])
    export_review(review, tmp_path / "out", [form])
    assert files_in(tmp_path / "out") == FILES[form]
    with pytest.raises(WrongUse):
        export_review(review, tmp_path / "out", [form])
    export_review(review, tmp_path / "out", [form], overwrite=True)
    assert files_in(tmp_path / "out") == FILES[form]


def test_boxes_rejected_since_the_last_export_leave_the_folder(scene: Any, tmp_path: Path) -> None:
    study, _ = shown_study(scene, tmp_path / "result")
    review = Review(study)
    export_review(review, tmp_path / "out", FORMATS)
    for roi in study.boxes():
        review.reject(roi)
    export_review(review, tmp_path / "out", FORMATS, overwrite=True)
    assert files_in(tmp_path / "out") == set().union(*FILES.values()) - FILES["markups"]
    opened = open_reviewed(slicer.vtkMRMLScene(), tmp_path / "out")
    assert [opened.state(roi) for roi in opened.boxes()] == ["rejected", "rejected"]


def test_a_file_that_somebody_edited_is_not_replaced(scene: Any, tmp_path: Path) -> None:
    review = Review(shown_study(scene, tmp_path / "result")[0])
    export_review(review, tmp_path / "out", ["csv"])
    table = tmp_path / "out" / "measurements.csv"
    table.write_text(table.read_text() + "a note\n")
    with pytest.raises(WrongUse, match=r"measurements\.csv"):
        export_review(review, tmp_path / "out", ["csv"], overwrite=True)
    assert table.read_text().endswith("a note\n")


def test_names_of_files_and_volumes_stay_out_of_an_export(scene: Any, tmp_path: Path) -> None:
    grid = GRIDS["axial"]
    sources = {name: f"/scans/DOE_JANE/{name}.nii.gz" for name in SEQUENCES}
    write_findings(findings_on(grid, with_study=False, study_id="DOE_JANE", sources=sources), tmp_path / "result")
    nodes = {name: add_volume(scene, f"DOE_JANE {name}", grid, seed) for seed, name in enumerate(SEQUENCES)}
    study = StudyScene(scene, "case 7")
    study.show(tmp_path / "result", nodes["t1ce"], nodes)
    export_review(Review(study), tmp_path / "out", FORMATS)
    told = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file() and b"DOE_JANE" in path.read_bytes()]
    assert told == []
    assert read_reviewed_case(tmp_path / "out").findings["study"]["id"] == "case 7"


def test_every_decision_leaves_with_its_time_and_comes_back(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path / "result")
    review = Review(study)
    review.set_grade("LGG")
    mask = oriented_image(np.ones(SHAPE, np.uint8), ijk_to_ras(nodes["t1ce"]))  # as the Segment Editor would draw
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(mask, study.segmentation, "enhancing")
    review.keep(study.boxes()[0])
    export_review(review, tmp_path / "out", ["training_case"])
    document = json.loads((tmp_path / "out" / "case.json").read_text())
    times = [document["grade"]["decided"], document["regions"]["decided"], document["boxes"][0]["decided"]]
    assert all(time.endswith("+00:00") for time in times)
    assert document["boxes"][1]["decided"] == ""
    export_review(Review(open_reviewed(slicer.vtkMRMLScene(), tmp_path / "out")), tmp_path / "again", ["training_case"])
    again = json.loads((tmp_path / "again" / "case.json").read_text())
    assert [again["grade"]["decided"], again["regions"]["decided"], again["boxes"][0]["decided"]] == times


def test_what_the_model_decided_has_no_time(scene: Any, tmp_path: Path) -> None:
    review = Review(shown_study(scene, tmp_path / "result")[0])
    review.set_grade("LGG")
    review.clear_grade()
    export_review(review, tmp_path / "out", ["training_case"])
    document = json.loads((tmp_path / "out" / "case.json").read_text())
    assert (document["grade"]["by"], document["grade"]["decided"]) == ("model", "")
    assert document["regions"] == {"by": "model", "decided": ""}


def test_a_grid_without_a_transform_is_exported_as_it_came_in(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path / "result", "sagittal, left-handed")
    export_review(Review(study), tmp_path / "out", ["training_case"])
    case = read_reviewed_case(tmp_path / "out")
    for name, node in nodes.items():
        assert case.images[name].grid.same_as(grid_of(node))
    np.testing.assert_array_equal(case.labels, findings_on(GRIDS["sagittal, left-handed"], with_study=False).labels)


def test_a_case_that_is_copied_is_what_it_was_whatever_happens_to_the_scene(scene: Any, tmp_path: Path) -> None:
    study, nodes = shown_study(scene, tmp_path / "result")
    case = reviewed_case(Review(study))
    labels, voxels = case.labels.copy(), case.images["t2"].array.copy()
    voxels_of(nodes["t2"].GetImageData())[...] = 0
    Review(study).write_labels(np.zeros_like(labels))
    scene.Clear(1)
    write_case(case, tmp_path / "out", ["training_case"])
    read = read_reviewed_case(tmp_path / "out")
    np.testing.assert_array_equal(read.labels, labels)
    np.testing.assert_array_equal(read.images["t2"].array, voxels)


def test_a_listener_that_stops_any_step_leaves_no_file(scene: Any, tmp_path: Path) -> None:
    case = reviewed_case(Review(shown_study(scene, tmp_path / "result")[0]))
    steps: list[float] = []
    write_case(case, tmp_path / "whole", FORMATS, lambda _stage, fraction, _text: steps.append(fraction))
    assert steps == sorted(steps)
    assert len(steps) >= 8
    for stop_at in range(len(steps)):
        left = iter(range(stop_at))

        def stop(*_: Any, left: Any = left) -> None:
            if next(left, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            write_case(case, tmp_path / "stopped", FORMATS, stop)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["result", "whole"]


def test_a_case_comes_into_the_scene_in_steps_and_leaves_it_when_they_are_given_up(scene: Any, tmp_path: Path) -> None:
    export_review(Review(shown_study(scene, tmp_path / "result")[0]), tmp_path / "out", ["training_case"])
    other, case = slicer.vtkMRMLScene(), read_reviewed_case(tmp_path / "out")
    empty = other.GetNumberOfNodesByClass("vtkMRMLVolumeNode")
    steps = show_reviewed(other, case)
    next(steps)
    assert other.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == empty + 1
    steps.close()
    assert other.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == empty
    assert StudyScene.find(other) == []
