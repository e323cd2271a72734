"""DICOM out: right patient, right place, voxel for voxel, valid by the standard, readable by other programs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="needs the extra `dicom`")

import highdicom
import pydicom
import SimpleITK

from MTMed3DCore.dicom import scan
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports.dicom import write_dicom
from MTMed3DCore.exports.dicom_pdf import write_dicom_pdf
from MTMed3DCore.exports.dicom_seg import write_dicom_seg
from MTMed3DCore.exports.dicom_source import refuse_elsewhere, sources_of
from MTMed3DCore.exports.dicom_sr import box_faces, write_dicom_sr
from MTMed3DCore.findings import Findings, Grade, Lesion, ModelIdentity, volumes_ml
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.volume import Volume, from_sitk
from Testing.awkward_grids import oblique_affine
from Testing.dicom_series import PARAMETERS, Examination, write_enhanced, write_series

SHAPE = (24, 20, 10)
AFFINES = {
    "axial": np.array([[-1.0, 0, 0, 12], [0, -1, 0, 10], [0, 0, 1, -9], [0, 0, 0, 1]]),
    "oblique": oblique_affine(),
    "flipped column": np.array([[-1.0, 0, 0, 12], [0, 1, 0, -10], [0, 0, 3, -9], [0, 0, 0, 1]]),
    "5 mm": np.array([[-0.9, 0, 0, 12], [0, -0.9, 0, 10], [0, 0, 5, -9], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 3.0, -20], [-1, 0, 0, 12], [0, -1, 0, 10], [0, 0, 0, 1]]),
}


def findings_of(folder, *, labels: np.ndarray | None = None) -> Findings:
    """Findings of one lesion on the T1ce series in a folder."""
    series = {name: s for s in scan(folder) if (name := s.verdict.sequence)}
    grid = series["t1ce"].stack.grid
    if labels is None:
        labels = np.zeros(grid.shape, np.uint8)
        labels[3:12, 5:15, 2:8] = 2
        labels[4:9, 6:12, 3:6] = 4
        labels[5:7, 8:10, 4:5] = 1
        labels[20, 1, 8] = 2  # a corner that a flip would move
    box = VoxelBox((3, 5, 2), (12, 15, 8)).to_world(grid)
    rano = {"longest_mm": 21.5, "perpendicular_mm": 13.25}
    return Findings(
        "case", {}, grid, labels, (Lesion(1, 0.93, box, volumes_ml(labels, grid), 31.0, "detection", rano),),
        Grade("HGG", 0.81), ModelIdentity("starter", "1.0", "ab" * 32, "synthetic studies"),
        software={"mtmed3d": "0.1.0"}, study=SimpleNamespace(series=series),
    )  # fmt: skip


@pytest.fixture
def write_study(tmp_path):
    """Writes a T1ce and a T2 series of one examination, with the tumour's findings."""

    def write(affine: np.ndarray, writer=write_series) -> Findings:
        rng, examination = np.random.default_rng(2), Examination("P77")
        for number, name in enumerate(("t1ce", "t2"), 1):
            array = rng.integers(0, 1000, SHAPE)
            writer(tmp_path / name, array, affine, examination, number=number, **PARAMETERS[name])
        return findings_of(tmp_path)

    return write


def test_patient_study_and_place_are_those_of_the_source(write_study, tmp_path):
    findings = write_study(AFFINES["oblique"])
    sources = sources_of(findings)
    segmentation = write_dicom_seg(findings, tmp_path / "seg.dcm", sources)
    write_dicom_sr(findings, tmp_path / "sr.dcm", sources, segmentation)
    write_dicom_pdf(findings, b"%PDF-1.7\nreport", tmp_path / "report.dcm", sources)
    source = sources.t1ce[0]
    for name in ("seg.dcm", "sr.dcm", "report.dcm"):
        written = pydicom.dcmread(tmp_path / name)
        for keyword in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "StudyInstanceUID",
            "AccessionNumber",
            "StudyDate",
        ):
            assert written.get(keyword) == source.get(keyword), f"{name} {keyword}"
        assert written.SeriesInstanceUID not in {d.SeriesInstanceUID for d in sources.all}
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    referenced = {item.SeriesInstanceUID for item in seg.ReferencedSeriesSequence}
    assert referenced == {d.SeriesInstanceUID for d in sources.all}


@pytest.mark.parametrize(("by", "kind"), [("model", "AUTOMATIC"), ("reader", "SEMIAUTOMATIC")])
def test_who_outlined_the_regions_is_said(write_study, tmp_path, by, kind):
    findings = replace(write_study(AFFINES["axial"]), regions_by=by)
    write_dicom_seg(findings, tmp_path / "seg.dcm", sources_of(findings))
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert {segment.SegmentAlgorithmType for segment in segments} == {kind}


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("name", AFFINES)
def test_the_segmentation_reads_back_voxel_for_voxel(write_study, tmp_path, name, kind):
    findings = write_study(AFFINES[name])
    write_dicom_seg(findings, tmp_path / "seg.dcm", sources_of(findings), kind)
    files = [pydicom.dcmread(frame.path) for frame in findings.study.series["t1ce"].frames]
    source = highdicom.get_volume_from_series(files)
    back = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True).match_geometry(source)
    expected = np.select([findings.labels == value for value in (1, 2, 4)], [1, 2, 3], 0)
    # highdicom's own volume of the source tells where its voxels lie; ours is compared there.
    ours = highdicom.Volume(
        expected.transpose(2, 1, 0), _highdicom_affine(findings.grid), "PATIENT", source.frame_of_reference_uid
    ).match_geometry(source)
    assert np.array_equal(back.array, ours.array)
    assert np.allclose(back.affine, ours.affine, atol=1e-4)


def _highdicom_affine(grid: Grid) -> np.ndarray:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    return lps[:, [2, 1, 0, 3]]


@pytest.mark.parametrize("name", AFFINES)
def test_dcmqi_reads_the_same_voxels_at_the_same_places(write_study, tmp_path, name):
    program = shutil.which("segimage2itkimage")
    if program is None:
        pytest.skip("dcmqi's segimage2itkimage is not installed")
    findings = write_study(AFFINES[name])
    write_dicom_seg(findings, tmp_path / "seg.dcm", sources_of(findings))
    (tmp_path / "out").mkdir()
    arguments = ["--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path / "out", "--outputType", "nii"]
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, timeout=60)
    for number, value in enumerate((1, 2, 4), 1):
        (file,) = (tmp_path / "out").glob(f"{number}.nii.gz")
        volume = from_sitk(SimpleITK.ReadImage(str(file)))
        assert _places(volume) == _places(Volume((findings.labels == value).astype(np.uint8), findings.grid))


def _places(volume: Volume) -> set[tuple[float, ...]]:
    """Where the voxels that are set lie, in RAS mm to a tenth."""
    return set(map(tuple, (volume.grid.to_world(np.argwhere(volume.array > 0)).round(1) + 0.0).tolist()))


def test_an_enhanced_source_is_referred_to_frame_by_frame(write_study, tmp_path):
    findings = write_study(AFFINES["oblique"], write_enhanced)
    write_dicom_seg(findings, tmp_path / "seg.dcm", sources_of(findings))
    back = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    assert sorted(np.unique(back.array, return_counts=True)[1][1:]) == sorted(
        np.unique(findings.labels, return_counts=True)[1][1:]
    )


def test_the_report_holds_every_measurement(write_study, tmp_path):
    findings = write_study(AFFINES["oblique"])
    sources = sources_of(findings)
    segmentation = write_dicom_seg(findings, tmp_path / "seg.dcm", sources)
    write_dicom_sr(findings, tmp_path / "sr.dcm", sources, segmentation, observer="Reader^Anne")
    report = highdicom.sr.srread(tmp_path / "sr.dcm").content
    groups = report.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [
        "Necrotic core",
        "Oedema",
        "Enhancing tumour",
        "Lesion 1",
    ]
    measured = {m.name.meaning: (m.value, m.unit.value) for m in groups[3].get_measurements()}
    volume = float(f"{findings.volumes_ml['whole_tumour'] * 1000:.4f}")
    assert measured == {
        "Volume": (volume, "mm3"),
        "Maximum 3D Diameter of a Mesh": (31.0, "mm"),
        "Detection score": (0.93, "1"),
        "Long axis": (21.5, "mm"),
        "Short axis": (13.25, "mm"),
    }
    for group, region in zip(groups[:3], ("necrotic_core", "oedema", "enhancing"), strict=True):
        (measurement,) = group.get_measurements()
        assert measurement.value == pytest.approx(findings.volumes_ml[region] * 1000, abs=1e-3)
    others = report.get_image_measurement_groups()
    assert [g.tracking_identifier for g in others] == ["Whole tumour", "Tumour core", "Grade"]
    (evaluation,) = others[2].get_qualitative_evaluations()
    assert evaluation.value.meaning == "High-grade glioma likely"
    text = str(pydicom.dcmread(tmp_path / "sr.dcm"))
    assert "Reader^Anne" in text
    assert "MTMed3D starter" in text


def test_the_box_in_the_report_is_the_box_in_the_patient(write_study):
    findings = write_study(AFFINES["oblique"])
    box = findings.lesions[0].box
    faces = np.concatenate([face[:4] for face in box_faces(box)]) @ np.diag([-1.0, -1.0, 1.0])
    assert sorted(map(tuple, faces.round(6).tolist())) == sorted(map(tuple, box.corners().round(6).tolist()))
    for face in box_faces(box):
        assert np.array_equal(face[0], face[4])
        assert np.linalg.norm(np.diff(face, axis=0), axis=1) == pytest.approx([*box.size[:2], *box.size[:2]])


@pytest.mark.parametrize("name", ["axial", "oblique", "5 mm"])
def test_a_validator_finds_no_error(write_study, tmp_path, name):
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is not installed")
    findings = write_study(AFFINES[name])
    sources = sources_of(findings)
    segmentation = write_dicom_seg(findings, tmp_path / "seg.dcm", sources)
    write_dicom_sr(findings, tmp_path / "sr.dcm", sources, segmentation)
    write_dicom_pdf(findings, b"%PDF-1.7\nreport", tmp_path / "report.dcm", sources)
    for file in ("seg.dcm", "sr.dcm", "report.dcm"):
        answer = subprocess.run([program, tmp_path / file], capture_output=True, text=True, timeout=60, check=False)
        errors = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], file


def test_what_a_reader_decided_is_ascribed_to_him_and_the_objects_are_valid(write_study, tmp_path):
    findings = write_study(AFFINES["oblique"])
    (lesion,) = findings.lesions
    added = replace(lesion, id=2, score=1.0, rano=None)
    findings = replace(findings, lesions=(lesion, added), grade=Grade("LGG", 0.81, "reader"), regions_by="reader")
    states = {1: "kept", 2: "added"}
    files = write_dicom(findings, tmp_path / "dicom", sources=sources_of(findings), observer="R^Ann", states=states)
    report = pydicom.dcmread(tmp_path / "dicom" / "measurements.dcm")
    words = [str(e.value) for e in report.iterall() if e.keyword in ("TextValue", "PersonName", "CodeMeaning")]
    said_of_him = [
        "R^Ann",
        "Reader, who kept it as the model proposed it",
        "Reader, who added it",
        "Reader, who corrected the segmentation",
        "Reader, who set the grade",
        "Low-grade glioma likely",
    ]
    assert [said for said in said_of_him if said not in words] == []
    assert (words.count("Detection score"), words.count("Probability of high grade")) == (1, 0)
    segments = pydicom.dcmread(tmp_path / "dicom" / "segmentation.dcm").SegmentSequence
    assert {segment.SegmentAlgorithmType for segment in segments} == {"SEMIAUTOMATIC"}
    program = shutil.which("dciodvfy")
    for file in files if program else ():
        answer = subprocess.run([program, file], capture_output=True, text=True, timeout=60, check=False)
        errors = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("Error")]
        assert errors == [], file


def test_an_unreviewed_report_names_no_reader(write_study, tmp_path):
    findings = write_study(AFFINES["axial"])
    write_dicom(findings, tmp_path / "dicom", sources=sources_of(findings))
    report = pydicom.dcmread(tmp_path / "dicom" / "measurements.dcm")
    assert not [e for e in report.iterall() if e.keyword == "CodeMeaning" and "Reader" in str(e.value)]


@pytest.mark.parametrize("name", AFFINES)
def test_a_result_lies_on_its_series_whichever_way_the_axes_run(write_study, name):
    findings = write_study(AFFINES[name])
    grid, sources = findings.grid, sources_of(findings)
    refuse_elsewhere(sources, grid)
    turn = np.diag([-1.0, 1.0, -1.0, 1.0])
    turn[[0, 2], 3] = grid.shape[0] - 1, grid.shape[2] - 1
    refuse_elsewhere(sources, Grid(grid.shape, grid.affine @ turn))
    for change in (np.diag([1.0, 1.0, 1.1, 1.0]), np.array([[1, 0, 0, 2.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])):
        with pytest.raises(InputRefused, match="does not lie where its DICOM series does"):
            refuse_elsewhere(sources, Grid(grid.shape, grid.affine @ change))


def test_a_study_that_did_not_come_as_dicom_is_refused(write_study):
    findings = write_study(AFFINES["axial"])
    object.__setattr__(findings.study, "series", {})
    with pytest.raises(InputRefused, match="did not come as DICOM") as refusal:
        sources_of(findings)
    assert refusal.value.code == "dicom-source"


def test_no_tumour_means_no_segmentation_but_a_report(write_study, tmp_path):
    findings = write_study(AFFINES["axial"])
    empty = findings_of(tmp_path, labels=np.zeros(findings.grid.shape, np.uint8))
    sources = sources_of(empty)
    with pytest.raises(InputRefused, match="no tumour"):
        write_dicom_seg(empty, tmp_path / "seg.dcm", sources)
    write_dicom_sr(empty, tmp_path / "sr.dcm", sources)
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_image_measurement_groups()
    assert groups[0].get_measurements()[0].value == 0


def test_bytes_that_are_no_pdf_are_refused(write_study, tmp_path):
    findings = write_study(AFFINES["axial"])
    with pytest.raises(InputRefused, match="begins with %PDF"):
        write_dicom_pdf(findings, b"<html>", tmp_path / "report.dcm", sources_of(findings))
