"""A reviewed case on disk: written as it is, read back equal, refused with a reason where it is damaged."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.exports.json_file import findings_document
from MTMed3DCore.exports.review import FORMATS, corrected_findings, write_review
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.measurements import compare
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation.record import PreparationRecord, Registration
from MTMed3DCore.reviewed import ReviewedBox, ReviewedCase, read_reviewed_case
from MTMed3DCore.volume import Volume
from Testing.example_findings import GRIDS, findings_on

WHEN = "2026-01-02T03:04:05+00:00"


def case_on(name: str = "oblique, left-handed", **changes: Any) -> ReviewedCase:
    grid = GRIDS[name]
    found = findings_on(grid, with_study=False)
    noise = np.random.default_rng(0)
    first, second = (lesion.box for lesion in found.lesions)
    fields: dict[str, Any] = {
        "id": "case 1",
        "images": {
            key: Volume(noise.uniform(1, 99, grid.shape).astype(np.float32), grid)
            for key in ("t1", "t1ce", "t2", "flair")
        },
        "labels": found.labels,
        "boxes": (
            ReviewedBox(1, first, "edited", 0.97, WHEN),
            ReviewedBox(2, second, "rejected", 0.48, WHEN),
            ReviewedBox(3, VoxelBox((1, 1, 1), (4, 4, 4)).to_world(grid), "added", None, WHEN),
        ),
        "grade": "LGG",
        "grade_by": "reader",
        "probability_hgg": 0.93,
        "regions_by": "reader",
        "comment": 'unclear "rim", é',
        "model": found.model,
        "grade_decided": WHEN,
        "regions_decided": WHEN,
    }
    return ReviewedCase(**(fields | changes))


@pytest.mark.parametrize("grid", list(GRIDS))
def test_a_case_reads_back_as_it_was_written(tmp_path: Path, grid: str) -> None:
    case = case_on(grid)
    write_review(case, tmp_path / "out", ["training_case"])
    read = read_reviewed_case(tmp_path / "out")
    np.testing.assert_array_equal(read.labels, case.labels)
    assert read.grid.same_as(case.grid)
    for name, volume in case.images.items():
        np.testing.assert_array_equal(read.images[name].array, volume.array)
    for one, two in zip(read.boxes, case.boxes, strict=True):
        np.testing.assert_allclose(one.box.corners(), two.box.corners(), atol=1e-9)
        assert (one.id, one.state, one.score, one.decided) == (two.id, two.state, two.score, two.decided)
    for name in ("grade", "grade_by", "grade_decided", "regions_by", "regions_decided", "comment", "probability_hgg"):
        assert getattr(read, name) == getattr(case, name)


def test_rejected_boxes_stay_in_the_case_and_out_of_the_findings() -> None:
    case = case_on()
    assert [each.id for each in case.accepted_boxes] == [1, 3]
    findings = corrected_findings(case)
    assert [lesion.id for lesion in findings.lesions] == [1, 3]
    assert [lesion.score for lesion in findings.lesions] == [1.0, 1.0]
    assert (findings.grade.label, findings.grade.by, findings.grade.probability_hgg) == ("LGG", "reader", 0.93)


def test_volumes_are_measured_on_the_corrected_labels() -> None:
    case = case_on("axial")
    labels = case.labels.copy()
    labels[labels == 4] = 0
    measured = corrected_findings(case_on("axial", labels=labels)).volumes_ml
    assert measured["enhancing"] == 0
    assert measured["whole_tumour"] == pytest.approx((labels > 0).sum() / 1000)


def head_grid() -> Grid:
    return Grid((60, 64, 12), np.array([[-2.5, 0, 0, 73.75], [0, 2.5, 0, -80], [0, 0, 6.0, -30], [0, 0, 0, 1]]))


def corrected_head(**changes: Any) -> ReviewedCase:
    """A head with a brain mask, in which a reader enlarged the enhancing tumour on the patient's left."""
    grid = head_grid()
    x, y, _ = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    brain = (x / 65) ** 2 + (y / 75) ** 2 < 1
    labels = np.zeros(grid.shape, np.uint8)
    labels[40:52, 20:32, 4:8] = 2
    labels[42:50, 22:28, 4:7] = 4  # 20 x 15 mm, seen on three slices
    box = VoxelBox((40, 20, 4), (52, 32, 8)).to_world(grid)
    images = {key: Volume((100.0 * brain).astype(np.float32), grid) for key in ("t1", "t1ce", "t2", "flair")}
    fields = {"images": images, "labels": labels, "boxes": (ReviewedBox(4, box, "kept", 0.6, WHEN),), "brain": brain}
    return case_on("axial", **(fields | changes))


def test_diameters_side_and_measurability_follow_the_corrected_regions() -> None:
    case = corrected_head()
    (lesion,) = corrected_findings(case).lesions
    assert lesion.laterality == {"side": "left", "right_share": 0.0}
    assert lesion.rano["longest_mm"] == pytest.approx(np.hypot(17.5, 12.5) + 2.5, abs=1.0)
    assert lesion.rano["measurable"]
    assert lesion.rano["slices"] == 3
    assert lesion.rano["least_mm"] == 12.0  # twice the slice distance of 6 mm
    labels = case.labels.copy()
    labels[labels == 4] = 2
    labels[44:46, 24:26, 5] = 4
    (smaller,) = corrected_findings(corrected_head(labels=labels)).lesions
    assert not smaller.rano["measurable"]
    assert smaller.longest_diameter_mm == lesion.longest_diameter_mm
    moved = np.zeros_like(labels)
    moved[8:20, 20:32, 4:8] = 2
    box = VoxelBox((8, 20, 4), (20, 32, 8)).to_world(head_grid())
    edited = (ReviewedBox(1, box, "edited", 0.6, WHEN),)
    (other,) = corrected_findings(corrected_head(labels=moved, boxes=edited)).lesions
    assert other.laterality["side"] == "right"
    assert other.rano is None


def test_without_a_brain_mask_the_side_is_told_by_what_the_t1ce_shows() -> None:
    (lesion,) = corrected_findings(corrected_head(brain=None)).lesions
    assert lesion.laterality["side"] == "left"


def test_the_comparison_with_a_prior_study_is_made_anew() -> None:
    prior = replace(findings_on(GRIDS["axial"]), study_id="before")
    model = findings_on(GRIDS["axial"], with_study=False)
    document = findings_document(replace(model, comparison=compare(model, prior)))
    case = case_on("axial", findings=document)
    labels = case.labels.copy()
    labels[labels == 4] = 2
    compared = corrected_findings(case_on("axial", labels=labels, findings=document)).comparison
    assert compared["volumes_ml"]["enhancing"]["current"] == 0
    assert compared["volumes_ml"]["enhancing"]["percent"] == pytest.approx(-100)
    assert compared["volumes_ml"]["enhancing"]["prior"] == pytest.approx(prior.volumes_ml["enhancing"])
    assert compared["lesions"] == {"prior": 2, "current": 2}


def test_preparation_and_its_warnings_stay_with_the_corrected_result() -> None:
    model = findings_on(GRIDS["axial"], with_study=False)
    kept, answered = Notice("registration-doubtful", "Compare."), Notice("region-without-box", "Lesion 2.")
    registrations = (Registration("t2", np.eye(4), "header", "doubtful", 2.5),)
    record = PreparationRecord(model.grid, model.grid, model.labels > 0, "built-in", registrations)
    document = findings_document(replace(model, warnings=(kept, answered), preparation=record))
    findings = corrected_findings(case_on("axial", findings=document))
    assert [notice.code for notice in findings.warnings] == ["reviewed", "registration-doubtful"]
    assert findings.preparation.registrations[0].disagreement_mm == 2.5
    assert findings.preparation.brain_ml == pytest.approx(record.brain_ml)


def test_the_table_holds_the_diameters_of_the_corrected_regions(tmp_path: Path) -> None:
    case = corrected_head()
    write_review(case, tmp_path / "out", ["csv"])
    with (tmp_path / "out" / "measurements.csv").open(newline="") as stream:
        study, lesion = csv.DictReader(stream)
    measured = corrected_findings(case).lesions[0].rano
    assert float(lesion["rano_longest_mm"]) == pytest.approx(measured["longest_mm"], abs=0.01)
    assert (lesion["rano_measurable"], lesion["side"]) == ("yes", "left")
    assert float(study["rano_product_mm2"]) == pytest.approx(measured["product_mm2"], abs=0.1)


def _drop(document: dict[str, Any]) -> None:
    del document["boxes"]


def _shift(document: dict[str, Any]) -> None:
    document["grid"]["affine_ras"][0][3] += 5


def _leave(document: dict[str, Any]) -> None:
    document["label"] = "../elsewhere.nii.gz"


def _unknown(document: dict[str, Any]) -> None:
    document["boxes"][0]["state"] = "perhaps"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (_drop, "reviewed-case-damaged", "boxes"),
        (_shift, "reviewed-case-grid", "grid"),
        (_leave, "reviewed-case-damaged", "elsewhere"),
        (_unknown, "reviewed-case-damaged", "perhaps"),
    ],
)
def test_a_damaged_case_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], code: str, named: str
) -> None:
    write_review(case_on(), tmp_path / "out", ["training_case"])
    path = tmp_path / "out" / "case.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputRefused, match=named) as refused:
        read_reviewed_case(tmp_path / "out")
    assert refused.value.code == code


def test_a_folder_without_a_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused) as refused:
        read_reviewed_case(tmp_path)
    assert refused.value.code == "reviewed-case-missing"


@pytest.mark.parametrize("formats", [[], ["training_case", "docx"]])
def test_an_unknown_form_is_refused_before_anything_is_written(tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(WrongUse, match="training_case" if not formats else "docx"):
        write_review(case_on(), tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()


def test_the_source_names_of_the_findings_are_not_written(tmp_path: Path) -> None:
    study = {"id": "DOE_JANE", "sequences": {"t1": "/scans/DOE_JANE/t1.nii.gz"}, "grid": {"shape": [1, 1, 1]}}
    formats = [name for name in FORMATS if name != "dicom"]  # which needs a series to refer to
    write_review(case_on(findings={"schema": "x", "study": study}), tmp_path / "out", formats)
    text = (tmp_path / "out" / "case.json").read_text()
    assert "DOE_JANE" not in text
    assert json.loads(text)["findings"]["study"]["grid"] == {"shape": [1, 1, 1]}
