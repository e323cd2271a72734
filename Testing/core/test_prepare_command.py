"""`mtmed3d prepare`: from files or a DICOM folder to prepared volumes, masks, record and picture."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from MTMed3DCore.cli import main
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study

AFFINE = np.eye(4)
FILES = {
    "brain_mask.nii.gz", "prepared_mask.nii.gz", "preparation.json", "quality.png", ".mtmed3d.json",
    *(f"{name}.nii.gz" for name in SEQUENCES), *(f"{name}_to_t1ce.tfm" for name in ("t1", "t2", "flair")),
}  # fmt: skip


def stripped_volumes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Four sequences of a skull-stripped ball on one grid of 1 mm."""
    side = np.meshgrid(*(np.linspace(-1, 1, 32),) * 3, indexing="ij")
    ball = np.sqrt(sum(axis**2 for axis in side)) < 0.7
    rng = np.random.default_rng(0)
    return {name: (np.where(ball, rng.integers(80, 120, ball.shape), 0), AFFINE) for name in SEQUENCES}


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """The study as a folder of files."""
    folder = tmp_path / "case 1"
    folder.mkdir()
    for name, (array, affine) in stripped_volumes().items():
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), folder / f"{name}.nii.gz")
    return folder


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def prepare(*arguments: object) -> int:
    return main(["prepare", *map(str, arguments), "-q"])


def test_a_prepared_study_is_written_with_masks_record_and_picture(case: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert prepare(case, "-o", out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    brain = voxels(out / "prepared_mask.nii.gz") > 0
    assert nibabel.load(out / "t2.nii.gz").header.get_zooms() == pytest.approx((1.0, 1.0, 1.0))
    original = stripped_volumes()["t2"][0]
    image = voxels(out / "t2.nii.gz")
    assert (image[~brain] == 0).all()
    np.testing.assert_allclose(np.sort(image[brain]), np.sort(original[original > 0]), atol=1e-3)
    assert (voxels(out / "brain_mask.nii.gz") > 0).sum() == brain.sum() == (original > 0).sum()
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((out / "preparation.json").read_text())
    assert record["brain_mask"]["source"] == "stripped"
    assert {each["verdict"] for each in record["registrations"]} == {"not-needed"}


def test_what_is_prepared_is_a_study_that_can_be_read_and_needs_no_preparation(case: Path, tmp_path: Path) -> None:
    assert prepare(case, "-o", tmp_path / "out") == 0
    study = Study.read(tmp_path / "out")
    assert [volume.grid.same_as(study.grid) for volume in study.sequences.values()] == [True] * 4
    assert prepare(tmp_path / "out", "-o", tmp_path / "again") == 0
    np.testing.assert_allclose(voxels(tmp_path / "again" / "flair.nii.gz"), voxels(tmp_path / "out" / "flair.nii.gz"))


def test_a_given_mask_goes_before_the_one_that_is_found(case: Path, tmp_path: Path) -> None:
    mask = np.zeros((32, 32, 32), np.uint8)
    mask[8:20, 9:22, 10:24] = 1
    nibabel.save(nibabel.Nifti1Image(mask, AFFINE), tmp_path / "mask.nii.gz")
    assert prepare(case, "-o", tmp_path / "out", "--mask", tmp_path / "mask.nii.gz") == 0
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "brain_mask.nii.gz"), mask)
    expected = (stripped_volumes()["t1"][0] > 0) & (mask > 0)
    assert (voxels(tmp_path / "out" / "t1.nii.gz") > 0).sum() == expected.sum()
    assert json.loads((tmp_path / "out" / "preparation.json").read_text())["brain_mask"]["source"] == "given"


def test_an_earlier_preparation_is_used_again_with_the_mask_as_it_is_now(case: Path, tmp_path: Path) -> None:
    assert prepare(case, "-o", tmp_path / "out") == 0
    edited = voxels(tmp_path / "out" / "brain_mask.nii.gz").copy()
    edited[:16] = 0
    nibabel.save(nibabel.Nifti1Image(edited, AFFINE), tmp_path / "out" / "brain_mask.nii.gz")
    assert prepare(case, "-o", tmp_path / "again", "--preparation", tmp_path / "out") == 0
    np.testing.assert_array_equal(voxels(tmp_path / "again" / "brain_mask.nii.gz"), edited)


def test_a_normalisation_is_written_where_it_is_asked_for(case: Path, tmp_path: Path) -> None:
    assert prepare(case, "-o", tmp_path / "out", "--normalisation", "zscore_brain") == 0
    brain = voxels(tmp_path / "out" / "prepared_mask.nii.gz") > 0
    image = voxels(tmp_path / "out" / "t1ce.nii.gz")[brain]
    assert (image.mean(), image.std()) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_folders_of_dicom_are_one_study_and_give_what_their_nifti_copy_gives(case: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra `dicom`")
    from Testing.dicom_series import write_examination

    write_examination(tmp_path / "dicom", stripped_volumes(), distractors=True)
    parts = sorted(path for path in (tmp_path / "dicom").iterdir() if path.is_dir())
    assert prepare(*parts, "-o", tmp_path / "parts") == 0
    assert prepare(tmp_path / "dicom", "-o", tmp_path / "whole", "--series", "t1ce=6") == 0
    assert prepare(case, "-o", tmp_path / "files") == 0
    for name in SEQUENCES:
        expected = voxels(tmp_path / "files" / f"{name}.nii.gz")
        for folder in ("parts", "whole"):
            np.testing.assert_allclose(voxels(tmp_path / folder / f"{name}.nii.gz"), expected, atol=1e-3)


def test_the_answer_for_programs_holds_the_record(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [argument for name in SEQUENCES for argument in (f"--{name}", case / f"{name}.nii.gz")]
    assert prepare(*files, "-o", tmp_path / "out", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["preparation"]["brain_mask"]["source"] == "stripped"
    assert [each["sequence"] for each in answer["preparation"]["registrations"]] == ["t1", "t2", "flair"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "No study is given"),
        (["CASE", "--t1", "a.nii.gz"], "Both CASE and files are given"),
        (["--t1", "a.nii.gz"], "--t1ce, --t2, --flair is not given"),
        (["CASE", "--spacing", "0"], "--spacing is 0 mm"),
        (["CASE", "--series", "t3=4"], "is not NAME=NUMBER"),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    arguments: list[str], said: str, case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(case) if each == "CASE" else each for each in arguments]
    assert main(["prepare", *given, "-o", str(tmp_path / "out"), "-q"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused_unless_it_may_be_replaced(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(case, "-o", tmp_path / "out") == 0
    assert prepare(case, "-o", tmp_path / "out") == 2
    assert "is not empty" in capsys.readouterr().err
    assert prepare(case, "-o", tmp_path / "out", "--overwrite") == 0
