"""Studies from the DICOM browser: which volume is which by its header, and DICOM objects of what the reader leaves."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panel_driver import ObedientWorker, add_study, choose, export, exported

pydicom = pytest.importorskip("pydicom", reason="needs the extra `dicom`")

CHECKS = ("trainingCheck", "segCheck", "niftiCheck", "markupsCheck", "csvCheck", "reportCheck", "dicomCheck")
SHAPE = (40, 44, 16)
SPACING = (0.9, 0.9, 5.0)
"""Thick slices."""
TILT_DEG = 12.0
"""Of the slices about the left-right axis, as a scanner tilts them."""


@pytest.fixture
def database(application: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application's DICOM database, empty."""
    import slicer
    from standin.application import DicomDatabase

    made = DicomDatabase()
    monkeypatch.setattr(slicer, "dicomDatabase", made, raising=False)
    return made


def examination(folder: Path, distractors: bool = True) -> Path:
    """An examination of one patient on disk."""
    from Testing.dicom_series import write_examination

    cosine, sine = np.cos(np.radians(TILT_DEG)), np.sin(np.radians(TILT_DEG))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-1, 0, 0], [0, -cosine, -sine], [0, -sine, cosine]]) * SPACING
    affine[:3, 3] = 20.0, 25.0, -30.0
    rng = np.random.default_rng(3)
    volumes = {name: (rng.integers(1, 500, SHAPE), affine) for name in ("t1", "t1ce", "t2", "flair")}
    write_examination(folder, volumes, distractors=distractors)
    return folder


def load(scene: Any, database: Any, folder: Path, names: dict[str, str] | None = None) -> dict[str, Any]:
    """Load every image series as the DICOM browser does; returns the nodes by what the series is taken for.

    Args:
        scene: takes the nodes.
        database: takes the files.
        folder: of the examination.
        names: of the nodes by sequence, in place of those that the browser gives.
    """
    import slicer

    from MTMed3DCore.dicom import scan

    database.import_folder(folder)
    nodes = {}
    for series in scan(folder):
        if not series.frames or len(series.frames) < 2:
            continue
        volume = series.read()
        # The browser keeps the rows as the files have them, from front to back; the core turns them.
        turn = np.diag([1.0, -1.0, 1.0, 1.0])
        turn[1, 3] = volume.grid.shape[1] - 1
        sequence = series.verdict.sequence or f"other {series.key}"
        name = (names or {}).get(sequence, f"{series.key}: {series.header.description}")
        array = np.ascontiguousarray(volume.array[:, ::-1].T)
        node = slicer.util.addVolumeFromArray(array, ijkToRAS=volume.grid.affine @ turn, name=name)
        node.CreateDefaultDisplayNodes()
        along = sorted(series.frames, key=lambda frame: frame.instance)
        node.SetAttribute("DICOM.instanceUIDs", " ".join(frame.sop_uid for frame in along))
        assert np.allclose([node.GetSpacing()], [volume.grid.spacing])
        nodes[sequence] = node
    return nodes


@pytest.fixture
def loaded(scene: Any, database: Any, tmp_path: Path) -> dict[str, Any]:
    """A study in the scene that came through the DICOM browser."""
    return load(scene, database, examination(tmp_path / "dicom"))


@pytest.fixture
def reviewed(panel: Any, loaded: dict[str, Any], worker: ObedientWorker, let: Any) -> Any:
    """A panel that shows a result of that study, on which the reader has decided."""
    let(lambda: panel.ui.analyzeButton.enabled)
    panel.ui.analyzeButton.click()
    worker.finish(lesions=3)
    let(lambda: panel.findings.study is not None)
    choose(panel, 0)
    panel.ui.keepButton.click()
    box = choose(panel, 1)
    panel.ui.editButton.click()
    size = box.GetSize()
    box.SetSize(size[0] + 6, size[1], size[2])
    panel.ui.editButton.click()
    choose(panel, 2)
    panel.ui.rejectButton.click()
    panel.ui.gradeCombo.setCurrentIndex(2)
    labels = panel.findings.study.labels()
    labels[10:13, 12:15, 9:11] = 4
    panel.review.review.write_labels(labels)
    for check in CHECKS[:-1]:
        getattr(panel.ui, check).checked = False
    return panel


class TestWhichIsWhich:
    def test_the_four_are_found_by_their_headers_among_everything_else(
        self, panel: Any, loaded: dict[str, Any], let: Any
    ) -> None:
        let(lambda: panel.ui.analyzeButton.enabled)
        assert panel.study.nodes == {name: loaded[name] for name in ("t1", "t1ce", "t2", "flair")}
        assert not panel.ui.hintLabel.visible

    def test_a_header_goes_before_a_name_that_says_nothing_or_something_else(
        self, panel: Any, scene: Any, database: Any, let: Any, tmp_path: Path
    ) -> None:
        names = {"t1": "series A", "t1ce": "T2 FLAIR", "t2": "T1 post", "flair": "series D"}
        nodes = load(scene, database, examination(tmp_path / "dicom", distractors=False), names)
        let(lambda: panel.ui.analyzeButton.enabled)
        assert panel.study.nodes == nodes

    def test_a_volume_whose_files_have_gone_is_known_by_its_name(
        self, panel: Any, scene: Any, let: Any, tmp_path: Path, application: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import slicer
        from standin.application import DicomDatabase

        folder = examination(tmp_path / "dicom", distractors=False)
        nodes = load(
            scene, DicomDatabase(), folder, {"t1": "T1 plain", "t1ce": "T1 post", "flair": "FLAIR", "t2": "T2"}
        )
        monkeypatch.setattr(slicer, "dicomDatabase", DicomDatabase(), raising=False)
        let(lambda: panel.ui.analyzeButton.enabled)
        assert panel.study.nodes == nodes

    def test_a_header_that_leaves_two_sequences_open_is_shown_with_both(
        self, panel: Any, scene: Any, database: Any, let: Any, tmp_path: Path
    ) -> None:
        folder = examination(tmp_path / "dicom", distractors=False)
        for path in folder.rglob("IM*"):
            dataset = pydicom.dcmread(path)
            if dataset.SeriesDescription == "AX T1 SE +C":
                dataset.SeriesDescription = "AX T1 SE without contrast"  # and the header records the agent
                dataset.save_as(path)
        load(scene, database, folder)
        let(lambda: panel.study.nodes["t2"] is not None)
        assert panel.study.nodes["t1ce"] is None
        assert "T1ce may be “6: AX T1 SE without contrast” (T1 or T1ce?); choose it." in panel.ui.hintLabel.text
        assert not panel.ui.analyzeButton.enabled

    def test_a_hint_goes_away_with_the_reader_s_choice(self, panel: Any, scene: Any, let: Any) -> None:
        from panel_driver import add_volume

        first, second = add_volume(scene, "FLAIR one"), add_volume(scene, "FLAIR two")
        let(lambda: panel.ui.hintLabel.visible)
        assert panel.ui.hintLabel.text == "“FLAIR one” and “FLAIR two” are FLAIR alike; choose one."
        panel.ui.flairSelector.setCurrentNode(second)
        assert not panel.ui.hintLabel.visible
        assert first is not second


class TestDicomExport:
    def test_a_study_that_is_not_from_dicom_cannot_be_exported_so_and_the_tooltip_says_why(self, analysed: Any) -> None:
        check = analysed.ui.dicomCheck
        assert not check.enabled
        assert "was not loaded from DICOM" in check.toolTip
        check.checked = True
        assert "dicom" not in analysed.export.formats

    def test_files_that_the_database_does_not_know_are_the_reason(
        self, reviewed: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import slicer
        from standin.application import DicomDatabase

        assert reviewed.ui.dicomCheck.enabled
        monkeypatch.setattr(slicer, "dicomDatabase", DicomDatabase())
        reviewed.refresh()
        assert not reviewed.ui.dicomCheck.enabled
        assert "are not in 3D Slicer's database" in reviewed.ui.dicomCheck.toolTip

    def test_it_is_not_chosen_by_itself_since_dicom_holds_the_patient_s_name(self, reviewed: Any) -> None:
        assert not reviewed.ui.dicomCheck.checked
        assert "the patient's name" in reviewed.ui.dicomCheck.toolTip

    def test_what_the_reader_left_is_written_with_who_decided_what(
        self, reviewed: Any, let: Any, tmp_path: Path
    ) -> None:
        highdicom = pytest.importorskip("highdicom", reason="needs the extra `dicom`")
        study = reviewed.findings.study
        reviewed.ui.exportFolder.setCurrentPath(str(tmp_path / "out"))
        reviewed.ui.dicomCheck.checked = True
        reviewed.ui.observerEdit.text = "Reader^Anne"
        export(reviewed, let)
        assert reviewed.ui.exportLabel.text.startswith("Written"), reviewed.ui.exportLabel.text
        folder = exported(reviewed) / "dicom"
        assert sorted(path.name for path in folder.iterdir()) == ["measurements.dcm", "report.dcm", "segmentation.dcm"]

        seg = highdicom.seg.segread(folder / "segmentation.dcm")
        assert (seg.PatientID, seg.ContentCreatorName) == ("STUDY-7", "Reader^Anne")
        assert {segment.SegmentAlgorithmType for segment in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
        volume = seg.get_volume(combine_segments=True)
        placed = places(volume.array, np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine)
        expected = np.select([study.labels() == 1, study.labels() == 2, study.labels() == 4], [1, 2, 3], 0)
        assert placed == places(expected, study.grid.affine)

        words = texts(pydicom.dcmread(folder / "measurements.dcm"))
        assert "Reader^Anne" in words
        assert "Low-grade glioma likely" in words
        assert "High-grade glioma likely" not in words
        for said in ("Reader, who kept it as the model proposed it", "Reader, who moved or resized it",
                     "Reader, who set the grade", "Reader, who corrected the segmentation"):  # fmt: skip
            assert said in words, said
        assert [word for word in words if word.startswith("Lesion ")] == ["Lesion 1", "Lesion 2"]
        assert words.count("Detection score") == 1
        assert "Probability of high grade" not in words
        assert pydicom.dcmread(folder / "report.dcm").EncapsulatedDocument.startswith(b"%PDF-")

    def test_a_deidentified_export_names_the_case_and_nobody_else(
        self, reviewed: Any, loaded: dict[str, Any], database: Any, let: Any, tmp_path: Path
    ) -> None:
        pytest.importorskip("highdicom", reason="needs the extra `dicom`")
        reviewed.ui.exportFolder.setCurrentPath(str(tmp_path / "out"))
        reviewed.ui.commentEdit.setPlainText("Mrs Zzyzxova from Quxbridge")
        for check in CHECKS:
            getattr(reviewed.ui, check).checked = True
        reviewed.ui.deidentifyCheck.checked = True
        assert "the patient's name" not in reviewed.ui.dicomCheck.toolTip
        reviewed.ui.caseNameEdit.text = "two words"
        export(reviewed, let)
        assert "'two words' is no pseudonym" in reviewed.ui.exportLabel.text
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
        reviewed.ui.caseNameEdit.text = "case-7"
        export(reviewed, let)
        assert reviewed.ui.exportLabel.text.startswith("Written"), reviewed.ui.exportLabel.text
        source = pydicom.dcmread(next((tmp_path / "dicom").rglob("IM*")), stop_before_pixels=True)
        marks = [b"Zzyzxova", b"STUDY-7", source.StudyInstanceUID.encode(), source.FrameOfReferenceUID.encode()]
        for path in (path for path in exported(reviewed).rglob("*") if path.is_file()):
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert [mark for mark in marks if mark in content] == [], path
        for path in (exported(reviewed) / "dicom").iterdir():
            dataset = pydicom.dcmread(path)
            assert (dataset.PatientID, dataset.PatientIdentityRemoved) == ("case-7", "YES")

    def test_the_reader_is_asked_before_an_earlier_export_is_replaced(
        self, reviewed: Any, application: Any, let: Any, tmp_path: Path
    ) -> None:
        reviewed.ui.exportFolder.setCurrentPath(str(tmp_path / "out"))
        reviewed.ui.dicomCheck.checked = True
        application.answers[:] = []
        export(reviewed, let)
        file = exported(reviewed) / "dicom" / "measurements.dcm"
        first = file.read_bytes()
        export(reviewed, let)
        assert any("holds an earlier export" in text for _, text in application.messages)
        assert reviewed.ui.exportLabel.text == "Nothing was written."
        assert file.read_bytes() == first

    def test_a_t1ce_that_was_moved_since_it_was_loaded_is_refused(
        self, reviewed: Any, loaded: dict[str, Any], let: Any, tmp_path: Path
    ) -> None:
        from MTMed3DLib.nodes import ijk_to_ras, matrix_of

        shifted = ijk_to_ras(loaded["t1ce"])
        shifted[:3, 3] += (12.0, 0.0, 0.0)
        for node in (loaded["t1ce"], *[loaded[name] for name in ("t1", "t2", "flair")]):
            node.SetIJKToRASMatrix(matrix_of(shifted))
        reviewed.ui.exportFolder.setCurrentPath(str(tmp_path / "out"))
        reviewed.ui.dicomCheck.checked = True
        export(reviewed, let)
        assert "does not lie where its DICOM series does; a corner is 12.0 mm away" in reviewed.ui.exportLabel.text
        assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []

    def test_packages_that_are_missing_are_said_and_nothing_is_written(
        self, reviewed: Any, monkeypatch: pytest.MonkeyPatch, let: Any, tmp_path: Path
    ) -> None:
        from MTMed3DLib.packages import PackagesMissing

        def refuse() -> None:
            raise PackagesMissing("These Python packages are missing: highdicom. Click Export to install them.")

        monkeypatch.setattr(reviewed.export, "_ensure_dicom", refuse)
        reviewed.ui.exportFolder.setCurrentPath(str(tmp_path / "out"))
        reviewed.ui.dicomCheck.checked = True
        reviewed.ui.exportButton.click()
        assert not reviewed.export.busy
        assert "highdicom" in reviewed.ui.exportLabel.text


def places(array: np.ndarray, affine: np.ndarray) -> dict[tuple[float, ...], int]:
    """The value of every voxel that is not 0, by its place in RAS mm."""
    where = np.argwhere(array > 0)
    points = (np.c_[where, np.ones(len(where))] @ affine.T)[:, :3].round(1) + 0.0
    return dict(zip(map(tuple, points.tolist()), array[tuple(where.T)].tolist(), strict=True))


def texts(dataset: Any) -> list[str]:
    """Every text, name and meaning of a code in a structured report, in its order."""
    found = []
    for element in dataset.iterall():
        if element.keyword in ("TextValue", "PersonName", "CodeMeaning"):
            found.append(str(element.value))
    return found


def test_two_volumes_of_files_are_no_dicom(scene: Any) -> None:
    from MTMed3DLib.dicom_series import files_of, header_of

    nodes = add_study(scene)
    assert header_of(nodes["t1"], None) is None
    assert files_of(nodes["t1"], None) == []
