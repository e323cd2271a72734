"""Cases of the same images are one patient, and what a reader has corrected stands over what it was corrected from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from MTMed3DCore.datalist import build_datalist
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.reviewed import ReviewedBox, ReviewedCase, write_case_files
from MTMed3DCore.volume import read_volume
from Testing.awkward_grids import SHAPE
from Testing.core.test_datalist import BRATS_2018, by_id, tumour, write_case

CORRECTED = (12, 11, 9)
"""Corner of the tumour as the reader sees it."""


def export(
    place: Path, original: Path, name: str, regions: str = "reader", grade: tuple[str | None, str | None] = (None, None)
) -> Path:
    """What 3D Slicer leaves of an original: the images as they were loaded, the regions corrected."""
    images = {each: read_volume(original / f"{original.name}_{each}.nii.gz") for each in ("t1", "t1ce", "t2", "flair")}
    labels = tumour(corner=CORRECTED)
    box = VoxelBox.around(labels > 0).to_world(images["t1ce"].grid)
    boxes = (ReviewedBox(1, box, "edited", 0.9), ReviewedBox(2, replace(box, size=box.size / 2), "rejected", 0.6))
    place.mkdir(parents=True)
    write_case_files(ReviewedCase(name, images, labels, boxes, *grade, None, regions), place)
    return place


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Two studies of one patient, and one each of two others."""
    for name in ("HGG/BraTS19_A_1", "HGG/BraTS19_A_2", "HGG/BraTS19_B_1", "LGG/BraTS19_D_1"):
        write_case(tmp_path / "data" / name, BRATS_2018, tumour())
    return tmp_path / "data"


@pytest.mark.parametrize("order", [1, -1])
def test_a_corrected_case_stands_for_its_original_and_is_the_same_patient(originals, tmp_path, order):
    exported = export(tmp_path / "reviewed" / "x", originals / "HGG" / "BraTS19_A_1", "case-20260101-101010")
    listed = build_datalist([originals, tmp_path / "reviewed"][::order], folds=3)
    cases = by_id(listed)
    assert sorted(cases) == ["BraTS19_A_2", "BraTS19_B_1", "BraTS19_D_1", "case-20260101-101010"]
    corrected = cases["case-20260101-101010"]
    assert corrected.patient == cases["BraTS19_A_2"].patient == "BraTS19_A"
    assert corrected.fold == cases["BraTS19_A_2"].fold
    assert (corrected.grade, len(corrected.boxes)) == ("HGG", 1)
    assert "the grade is that of BraTS19_A_1" in corrected.source
    (skipped,) = listed.skipped
    assert Path(skipped.path) == originals / "HGG" / "BraTS19_A_1"
    assert str(exported) in skipped.reason
    assert "a reader has corrected its regions" in skipped.reason


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_cases_of_one_name_the_corrected_one_stays(originals, tmp_path, order):
    export(tmp_path / "reviewed" / "same", originals / "HGG" / "BraTS19_B_1", "BraTS19_B_1")
    export(tmp_path / "reviewed" / "other images", originals / "HGG" / "BraTS19_A_1", "BraTS19_D_1")
    listed = build_datalist([originals, tmp_path / "reviewed"][::order], folds=0)
    cases = by_id(listed)
    assert cases["BraTS19_B_1"].label.path == tmp_path / "reviewed" / "same" / "seg.nii.gz"
    assert cases["BraTS19_D_1"].label.path == tmp_path / "reviewed" / "other images" / "seg.nii.gz"
    reasons = {Path(each.path).name: each.reason for each in listed.skipped}
    assert set(reasons) == {"BraTS19_A_1", "BraTS19_B_1", "BraTS19_D_1"}
    assert "another case is called BraTS19_D_1 as well" in reasons["BraTS19_D_1"]


def test_regions_that_only_the_model_drew_replace_no_label_map_but_the_readers_grade_is_taken(originals, tmp_path):
    place = originals / "HGG" / "BraTS19_B_1"
    export(tmp_path / "reviewed", place, "case-1", "model", ("LGG", "reader"))
    listed = build_datalist([tmp_path / "reviewed", originals], folds=0)
    case = by_id(listed)["BraTS19_B_1"]
    assert case.label.path.parent == place
    assert case.grade == "LGG"
    assert "case-1 shows the same images as BraTS19_B_1" in listed.skipped[0].reason
    (place / "BraTS19_B_1_seg.nii.gz").unlink()
    assert "case-1" in by_id(build_datalist([originals, tmp_path / "reviewed"], folds=0))


def test_a_readers_grade_stands_over_folder_and_annotation_file_and_the_models_does_not(originals, tmp_path):
    for name, by in (("one", "reader"), ("two", "model")):
        export(tmp_path / "reviewed" / "HGG" / name, originals / "HGG" / "BraTS19_B_1", name, "reader", ("LGG", by))
    file = tmp_path / "data_annotation.json"
    file.write_text(json.dumps({"training": [{"image": f"{n}.nii.gz", "cls_label": 1} for n in ("one", "two")]}))
    (case,) = build_datalist([tmp_path / "reviewed" / "HGG" / "one"], folds=0, annotation=file).cases
    assert case.grade == "LGG"
    (case,) = build_datalist([tmp_path / "reviewed" / "HGG" / "two"], folds=0, annotation=file).cases
    assert case.grade == "HGG"


def test_copies_are_known_by_their_voxels_however_a_file_keeps_them(originals, tmp_path):
    copy = tmp_path / "later" / "BraTS20_Training_007"
    copy.mkdir(parents=True)
    for ending in BRATS_2018.values():
        original = nibabel.load(originals / "HGG" / "BraTS19_A_1" / f"BraTS19_A_1{ending}.nii.gz")
        array = np.asarray(original.dataobj)[::-1].transpose(2, 0, 1)
        turned = original.affine @ np.array([[0, -1, 0, SHAPE[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
        nibabel.save(nibabel.Nifti1Image(array, turned), copy / f"{copy.name}{ending}.nii")
    listed = build_datalist([tmp_path / "later", originals], folds=3)
    cases = by_id(listed)
    assert not listed.skipped
    assert {cases[name].patient for name in ("BraTS20_Training_007", "BraTS19_A_1", "BraTS19_A_2")} == {"BraTS19_A"}
    assert len({cases[name].fold for name in ("BraTS20_Training_007", "BraTS19_A_1", "BraTS19_A_2")}) == 1
    assert cases["BraTS20_Training_007"].grade == "HGG"
    assert listed.notes == ("1 of 5 cases show the same images as another one; they share its patient.",)


def test_a_corrected_case_that_cannot_be_read_leaves_its_original_in_place(originals, tmp_path):
    exported = export(tmp_path / "reviewed", originals / "HGG" / "BraTS19_B_1", "case-1")
    (exported / "seg.nii.gz").write_bytes(b"")
    listed = build_datalist([originals, exported], folds=0)
    assert "BraTS19_B_1" in by_id(listed)
    assert [Path(each.path).name for each in listed.skipped] == ["seg.nii.gz"]
