"""A reviewed case on disk: written as it is, read back equal, refused with a reason where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.exports.review import FORMATS, corrected_findings, write_review
from MTMed3DCore.geometry import VoxelBox
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
    assert (findings.grade.label, findings.grade.probability_hgg) == ("LGG", 0.0)


def test_volumes_are_measured_on_the_corrected_labels() -> None:
    case = case_on("axial")
    labels = case.labels.copy()
    labels[labels == 4] = 0
    measured = corrected_findings(case_on("axial", labels=labels)).volumes_ml
    assert measured["enhancing"] == 0
    assert measured["whole_tumour"] == pytest.approx((labels > 0).sum() / 1000)


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


@pytest.mark.parametrize("formats", [[], ["training_case", "dicom"]])
def test_an_unknown_form_is_refused_before_anything_is_written(tmp_path: Path, formats: list[str]) -> None:
    with pytest.raises(WrongUse, match="training_case" if not formats else "dicom"):
        write_review(case_on(), tmp_path / "out", formats)
    assert not (tmp_path / "out").exists()


def test_the_source_names_of_the_findings_are_not_written(tmp_path: Path) -> None:
    study = {"id": "DOE_JANE", "sequences": {"t1": "/scans/DOE_JANE/t1.nii.gz"}, "grid": {"shape": [1, 1, 1]}}
    write_review(case_on(findings={"schema": "x", "study": study}), tmp_path / "out", FORMATS)
    text = (tmp_path / "out" / "case.json").read_text()
    assert "DOE_JANE" not in text
    assert json.loads(text)["findings"]["study"]["grid"] == {"shape": [1, 1, 1]}
