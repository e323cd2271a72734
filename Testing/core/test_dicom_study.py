"""A whole DICOM examination: the four sequences found among the others, or refused with what is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra `dicom`")

from MTMed3DCore.cli import main
from MTMed3DCore.dicom import choose, scan
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from MTMed3DCore.volume import read_volume
from Testing.awkward_grids import oblique_affine
from Testing.dicom_series import PARAMETERS, Examination, nifti_order, scanner_order, write_examination, write_series

SHAPE = (24, 20, 10)


def volumes(affine: np.ndarray | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(8)
    return {name: (rng.integers(1, 900, SHAPE), oblique_affine() if affine is None else affine) for name in SEQUENCES}


@pytest.fixture
def examination(tmp_path) -> Path:
    write_examination(tmp_path / "export", volumes(), distractors=True)
    return tmp_path / "export"


def test_the_four_sequences_are_found_among_others(examination):
    study = Study.read(examination)
    assert {name: series.header.number for name, series in study.series.items()} == {
        "t1": 3, "t2": 4, "flair": 5, "t1ce": 6,
    }  # fmt: skip
    for name, (array, affine) in volumes().items():
        turned, grid = nifti_order(array, affine)
        assert np.array_equal(study.sequences[name].array, turned)
        assert np.allclose(study.sequences[name].grid.affine, grid, atol=1e-6)
    assert study.id == "export"


def test_everything_else_is_set_aside_with_the_reason(examination):
    aside = {series.header.number: series.verdict.aside for series in scan(examination) if series.verdict.aside}
    assert aside == {
        1: "localiser",
        20: "diffusion",
        21: "diffusion",
        22: "reformatted or projected",
        23: "subtraction",
        24: "gradient echo (T2*)",
        25: "not MR",
    }


def test_the_table_names_every_series_and_what_it_is_taken_for(examination, capsys):
    assert main(["series", str(examination), "-q"]) == 0
    table = capsys.readouterr().out
    for text in ("AX T1 SE +C", "T1ce *", "FLAIR *", "not used: localiser", "ready: all four sequences"):
        assert text in table
    assert main(["series", str(examination), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chosen"] == {"t1": "3", "t1ce": "6", "t2": "4", "flair": "5"}
    assert "STUDY-7" not in json.dumps(document)


def test_a_missing_sequence_is_refused_with_what_is_there(examination, capsys):
    for file in (examination / "DIR005").iterdir():
        file.unlink()
    with pytest.raises(InputRefused, match=r"No series is the FLAIR \(there are: .*AX T2 FSE") as refusal:
        Study.read(examination)
    assert refusal.value.code == "sequence-missing"
    assert main(["series", str(examination), "-q"]) == 3
    assert "not ready" in capsys.readouterr().out


def test_an_undecided_series_is_shown_and_not_guessed(tmp_path):
    """One of two T1 has an agent on record and "pre" in its name."""
    write_examination(tmp_path, volumes(), distractors=False)
    odd = {**PARAMETERS["t1ce"], "SeriesDescription": "AX T1 PRE"}
    for file in (tmp_path / "DIR006").iterdir():
        file.unlink()
    array, affine = scanner_order(*volumes()["t1ce"])
    found = scan(tmp_path)[0].header
    same = Examination("STUDY-7", found.study_uid, found.frame_uid)
    write_series(tmp_path / "odd", array, affine, same, number=9, **odd)
    with pytest.raises(InputRefused, match=r"surely the T1ce; it may be 9 AX T1 PRE") as refusal:
        Study.read(tmp_path)
    assert refusal.value.code == "sequence-ambiguous"
    assert Study.read(tmp_path, series={"t1ce": "9"}).series["t1ce"].header.number == 9


def test_of_two_alike_none_is_taken_but_a_clearly_finer_one_is(tmp_path):
    write_examination(tmp_path, volumes(), distractors=False)
    found = scan(tmp_path)[0].header
    same = Examination("STUDY-7", found.study_uid, found.frame_uid)
    array, affine = scanner_order(*volumes()["t1ce"])
    write_series(tmp_path / "again", array + 1, affine, same, number=9, **PARAMETERS["t1ce"])
    with pytest.raises(InputRefused, match="Several series are the T1ce alike: 6 AX T1 SE") as refusal:
        choose(scan(tmp_path))
    assert refusal.value.code == "sequence-ambiguous"
    fine = affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    write_series(
        tmp_path / "fine", np.kron(array, np.ones((2, 2, 2), int)), fine, same, number=10, **PARAMETERS["t1ce"]
    )
    choice = choose(scan(tmp_path))
    assert choice.series["t1ce"].header.number == 10
    assert [notice.code for notice in choice.notices] == ["sequence-several"]
    assert "6 AX T1 SE +C" in choice.notices[0].text


def test_two_examinations_in_one_folder_are_refused(tmp_path):
    write_examination(tmp_path / "now", volumes(), distractors=False)
    write_examination(tmp_path / "then", volumes(), distractors=False)
    with pytest.raises(InputRefused, match="2 studies of the patient") as refusal:
        Study.read(tmp_path)
    assert refusal.value.code == "several-studies"


def test_a_number_that_is_not_there_is_wrong_use(examination):
    with pytest.raises(WrongUse, match=r"No series has the number 77 \(flair\)"):
        Study.read(examination, series={"flair": "77"})


def test_a_fault_of_the_only_series_is_told(examination):
    sorted((examination / "DIR006").iterdir())[4].unlink()
    with pytest.raises(InputRefused, match=r"6 AX T1 SE \+C lacks 1 of its slices"):
        Study.read(examination)


@pytest.fixture(scope="module")
def native() -> Path:
    root = Path(os.environ.get("MTMED3D_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    place = root / "native" / "TCGA-FG-6692"
    if not place.is_dir():
        pytest.skip(f"no real native study: {place} does not exist (set MTMED3D_DATA)")
    return place


def test_a_dicom_copy_of_a_real_study_is_the_study(native, tmp_path):
    images = {name: nibabel.load(native / f"{name}.nii.gz") for name in SEQUENCES}
    write_examination(
        tmp_path, {name: (np.asarray(image.dataobj), image.affine) for name, image in images.items()}, distractors=True
    )
    choice = choose(scan(tmp_path))
    for name in SEQUENCES:
        volume, expected = choice.series[name].read(), read_volume(native / f"{name}.nii.gz")
        assert np.array_equal(volume.array, expected.array)
        assert np.abs(volume.grid.affine - expected.grid.affine).max() < 1e-4


@pytest.fixture
def tiny_model(tmp_path, monkeypatch) -> str:
    """An untrained network, as a bundle that the command finds."""
    import torch

    from MTMed3DCore import bundles
    from MTMed3DCore.inference.settings import InferenceSettings
    from MTMed3DCore.networks import build_network

    torch.manual_seed(0)
    network = build_network("mtmed3d", feature_size=12)
    settings = InferenceSettings(spacing_mm=4.0, window=64, grading_crop=64)
    place = tmp_path / "models" / "tiny"
    bundles.save_bundle(place, network, settings, name="tiny", version="1", trained_on="Nothing.", card="")
    monkeypatch.setenv("MTMED3D_MODELS", str(tmp_path / "models"))
    return "tiny"


def test_analyze_goes_from_a_dicom_folder_to_dicom_objects_and_bids(tmp_path, tiny_model):
    highdicom = pytest.importorskip("highdicom", reason="needs the extra `dicom`")
    side = np.meshgrid(*(np.linspace(-1, 1, 40),) * 3, indexing="ij")
    head = np.sqrt(sum(axis**2 for axis in side)) < 0.8
    rng = np.random.default_rng(0)
    affine = np.diag([-4.0, -4.0, 4.0, 1.0])
    images = {name: (np.where(head, rng.integers(80, 120, head.shape), 0), affine) for name in SEQUENCES}
    write_examination(tmp_path / "patient 7", images, distractors=True)
    arguments = ["analyze", str(tmp_path / "patient 7"), "-o", str(tmp_path / "out"), "--model", tiny_model, "-q"]
    assert main([*arguments, "--device", "cpu", "--dicom", "--bids", str(tmp_path / "bids")]) == 0
    labels = nibabel.load(tmp_path / "out" / "segmentation.nii.gz")
    assert np.asarray(labels.dataobj).any()
    seg = highdicom.seg.segread(tmp_path / "out" / "dicom" / "segmentation.dcm")
    assert seg.PatientID == "STUDY-7"
    for number, value in enumerate((1, 2, 4), 1):
        expected = int((np.asarray(labels.dataobj) == value).sum())
        frames = [i for i, f in enumerate(seg.PerFrameFunctionalGroupsSequence) if _segment_of(f) == number]
        assert int(seg.pixel_array.reshape(-1, 40, 40)[frames].sum()) == expected
    assert (tmp_path / "out" / "dicom" / "measurements.dcm").is_file()
    assert (tmp_path / "out" / "dicom" / "report.dcm").is_file()
    copied = nibabel.load(tmp_path / "bids/sub-patient7/anat/sub-patient7_space-orig_desc-tumour_dseg.nii.gz")
    assert np.array_equal(np.asarray(copied.dataobj), np.asarray(labels.dataobj))


def _segment_of(frame) -> int:
    return frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber


def test_dicom_objects_of_image_files_are_refused_before_the_analysis(tmp_path, tiny_model, write_case, capsys):
    arguments = ["analyze", str(write_case()), "-o", str(tmp_path / "out"), "--model", tiny_model, "--dicom", "--json"]
    assert main(arguments) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "dicom-source"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["t1ce", "t1ce=", "pd=3"])
def test_a_series_option_that_names_nothing_is_wrong_use(text, tmp_path, capsys):
    assert main(["analyze", str(tmp_path), "-o", str(tmp_path / "out"), "--series", text]) == 2
    assert "NAME=NUMBER" in capsys.readouterr().err
