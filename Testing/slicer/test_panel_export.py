"""Exporting and opening cases through the panel: names, rejected regions, and what the reader does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panel_driver import WAIT_S, add_study, choose, export, exported, states


class TestExport:
    def test_the_button_says_what_is_missing(self, panel: Any) -> None:
        assert not panel.ui.exportButton.enabled
        assert panel.ui.exportButton.toolTip.splitlines() == ["Analyse a study first.", "Choose a folder."]

    def test_the_case_on_disk_is_what_the_scene_shows(self, analysed: Any, tmp_path: Path, let: Any) -> None:
        from MTMed3DCore.reviewed import read_reviewed_case

        choose(analysed, 1)
        analysed.ui.rejectButton.click()
        analysed.ui.gradeCombo.setCurrentIndex(2)
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        export(analysed, let)
        assert analysed.ui.exportLabel.text == f"Written: {exported(analysed)}"
        case = read_reviewed_case(exported(analysed))
        np.testing.assert_array_equal(case.labels, analysed.findings.study.labels())
        assert [box.state for box in case.boxes] == ["proposed", "rejected"]
        assert (case.grade, case.grade_by) == ("LGG", "reader")

    def test_an_earlier_export_is_replaced_only_when_the_reader_agrees(
        self, analysed: Any, application: Any, tmp_path: Path, let: Any
    ) -> None:
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        export(analysed, let)
        before = (exported(analysed) / "case.json").read_bytes()
        analysed.ui.gradeCombo.setCurrentIndex(2)
        export(analysed, let)
        assert application.messages[-1][0] == "question"
        assert analysed.ui.exportLabel.text == "Nothing was written."
        assert (exported(analysed) / "case.json").read_bytes() == before
        application.answers.append(True)
        export(analysed, let)
        assert (exported(analysed) / "case.json").read_bytes() != before

    @pytest.mark.parametrize(("answer", "state"), [(True, "rejected"), (False, "proposed")])
    def test_the_reader_says_what_becomes_of_boxes_that_the_confidence_hides(
        self, analysed: Any, application: Any, tmp_path: Path, answer: bool, state: str, let: Any
    ) -> None:
        from MTMed3DCore.reviewed import read_reviewed_case

        analysed.ui.confidenceSlider.value = 0.9
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        application.answers.append(answer)
        export(analysed, let)
        assert "hides 1 box" in application.messages[0][1]
        assert [box.state for box in read_reviewed_case(exported(analysed)).boxes] == ["proposed", state]

    def test_a_failed_export_says_why(self, analysed: Any, scene: Any, tmp_path: Path, let: Any) -> None:
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        scene.RemoveNode(analysed.study.nodes["flair"])
        export(analysed, let)
        assert "Nothing was written: FLAIR is no longer in the scene." in analysed.ui.exportLabel.text
        assert list(tmp_path.iterdir()) == []

    def test_an_exported_case_is_opened_again_with_every_decision(
        self, analysed: Any, scene: Any, tmp_path: Path, let: Any
    ) -> None:
        choose(analysed, 0)
        analysed.ui.keepButton.click()
        analysed.ui.difficultyCombo.setCurrentIndex(3)
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        export(analysed, let)
        folder = exported(analysed)
        scene.Clear(0)
        let(lambda: analysed.findings.study is None)
        assert analysed.export.open(folder)
        let(lambda: not analysed.export.busy)
        assert states(analysed) == ["kept", "proposed"]
        assert analysed.ui.difficultyCombo.currentText == "hard"
        assert all(node is not None for node in analysed.study.nodes.values())
        let(lambda: analysed.ui.analyzeButton.enabled)

    def test_what_is_no_case_is_refused_with_a_reason(self, panel: Any, tmp_path: Path, let: Any) -> None:
        assert panel.export.open(tmp_path)
        let(lambda: not panel.export.busy)
        assert str(tmp_path) in panel.ui.exportLabel.text
        assert "cannot be opened" in panel.ui.exportLabel.text


class TestRejectedRegions:
    @pytest.fixture
    def rejected(self, analysed: Any) -> Any:
        """Both boxes touch the one tumour, and both are rejected."""
        for row in (0, 1):
            choose(analysed, row)
            analysed.ui.rejectButton.click()
        return analysed

    def test_they_stay_until_the_reader_erases_them_and_he_is_told(self, rejected: Any) -> None:
        assert rejected.ui.wholeTumourVolume.text == "18.8 ml"
        assert rejected.ui.stageLabel.text.startswith("18.8 ml of the regions lie in rejected boxes alone")
        rejected.ui.eraseRejectedButton.click()
        assert rejected.ui.wholeTumourVolume.text == "0.0 ml"
        assert not rejected.findings.study.labels().any()
        assert rejected.findings.study.regions_edited

    def test_without_a_rejected_box_there_is_nothing_to_erase(self, analysed: Any) -> None:
        assert not analysed.ui.eraseRejectedButton.enabled
        choose(analysed, 1)
        analysed.ui.rejectButton.click()
        assert analysed.ui.eraseRejectedButton.enabled
        analysed.ui.keepButton.click()
        assert not analysed.ui.eraseRejectedButton.enabled

    @pytest.mark.parametrize(("answer", "left"), [(True, False), (False, True)])
    def test_an_export_asks_what_becomes_of_them(
        self, rejected: Any, application: Any, tmp_path: Path, let: Any, answer: bool, left: bool
    ) -> None:
        from MTMed3DCore.reviewed import read_reviewed_case

        rejected.ui.reportCheck.checked = False
        rejected.ui.exportFolder.setCurrentPath(str(tmp_path))
        application.answers.append(answer)
        export(rejected, let)
        assert "18.8 ml of the regions lie in rejected boxes alone. Erase them?" in application.messages[-1][1]
        case = read_reviewed_case(exported(rejected))
        assert case.labels.any() == left
        np.testing.assert_array_equal(case.labels, rejected.findings.study.labels())


class TestExportOnAnotherThread:
    @pytest.fixture
    def held(self, analysed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
        """A panel whose export waits, before its first file, until the event is set."""
        from MTMed3DLib import panel_export

        go, write = threading.Event(), panel_export.write_case

        def wait_and_write(case: Any, folder: Path, formats: Any, report: Any, **options: Any) -> Path:
            report("write", 0.0, "Waiting")
            assert go.wait(WAIT_S)
            return write(case, folder, formats, report, **options)

        monkeypatch.setattr(panel_export, "write_case", wait_and_write)
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        yield analysed, go
        go.set()

    def test_what_the_reader_changes_meanwhile_does_not_tear_it(self, held: Any, scene: Any, let: Any) -> None:
        from MTMed3DCore.reviewed import read_reviewed_case

        panel, go = held
        study, folder = panel.findings.study, exported(panel)
        labels, size = study.labels(), list(study.boxes()[0].GetSize())
        panel.ui.exportButton.click()
        let(lambda: panel.ui.exportLabel.text == "Waiting")
        assert panel.ui.exportBar.visible
        study.boxes()[0].SetSize(2.0, 2.0, 2.0)
        panel.review.review.write_labels(np.zeros_like(labels))
        panel.ui.gradeCombo.setCurrentIndex(2)
        scene.RemoveNode(panel.study.nodes["flair"])
        go.set()
        let(lambda: not panel.export.busy)
        case = read_reviewed_case(folder)
        np.testing.assert_array_equal(case.labels, labels)
        assert (case.grade, case.grade_by) == ("HGG", "model")
        assert case.boxes[0].box.size.tolist() == pytest.approx(size)

    def test_a_cancel_leaves_no_file(self, held: Any, let: Any, tmp_path: Path) -> None:
        panel, go = held
        panel.ui.exportButton.click()
        assert panel.ui.exportButton.text == "Cancel"
        panel.ui.exportButton.click()
        go.set()
        let(lambda: not panel.export.busy)
        assert panel.ui.exportLabel.text == "Cancelled; nothing was written."
        assert panel.ui.exportButton.text == "Export"
        assert list(tmp_path.iterdir()) == []

    def test_closing_the_panel_ends_it(self, held: Any, let: Any, tmp_path: Path) -> None:
        panel, go = held
        panel.ui.exportButton.click()
        task = panel.export._task
        threading.Timer(0.05, go.set).start()
        panel.close()
        let(lambda: task.finished)
        assert list(tmp_path.iterdir()) == []

    def test_a_scene_closed_while_a_case_comes_in_gets_nothing_of_it(self, held: Any, scene: Any, let: Any) -> None:
        panel, go = held
        go.set()
        export(panel, let)
        folder, before = exported(panel), scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
        panel.export.open(folder)
        let(lambda: scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") > before)
        scene.Clear(0)
        let(lambda: not panel.export.busy)
        assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
        assert panel.findings.study is None


class TestCaseName:
    def test_it_tells_no_volume_s_name_until_the_reader_gives_one(
        self, panel: Any, scene: Any, worker: Any, let: Any, tmp_path: Path
    ) -> None:
        add_study(scene, "DOE_JANE")
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        worker.finish()
        let(lambda: panel.findings.study is not None)
        assert panel.ui.caseNameEdit.text.startswith("case-20")
        panel.ui.exportFolder.setCurrentPath(str(tmp_path))
        export(panel, let)
        told = [path for path in tmp_path.rglob("*") if path.is_file() and b"DOE_JANE" in path.read_bytes()]
        assert (told, list(tmp_path.rglob("*DOE_JANE*"))) == ([], [])

    def test_the_reader_s_name_goes_everywhere_and_a_further_run_belongs_to_it(
        self, analysed: Any, scene: Any, worker: Any, let: Any, tmp_path: Path
    ) -> None:
        from MTMed3DCore.reviewed import read_reviewed_case

        old = analysed.findings.study.study_id
        choose(analysed, 0)
        analysed.ui.keepButton.click()
        analysed.ui.caseNameEdit.text = "  site 3   case 14 "
        analysed.ui.caseNameEdit.editingFinished.emit()
        names = [scene.GetNthNode(index).GetName() or "" for index in range(scene.GetNumberOfNodes())]
        assert [name for name in names if old in name] == []
        assert "site 3 case 14 regions" in names
        analysed.ui.analyzeButton.click()
        worker.finish()
        let(lambda: analysed.ui.analyzeButton.text == "Analyze")
        assert "kept" in states(analysed)
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        export(analysed, let)
        assert read_reviewed_case(tmp_path / "site 3 case 14").id == "site 3 case 14"

    def test_a_name_that_was_typed_and_not_left_counts_for_the_export(
        self, analysed: Any, let: Any, tmp_path: Path
    ) -> None:
        analysed.ui.reportCheck.checked = False
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        analysed.ui.caseNameEdit.text = "case 7"
        export(analysed, let)
        assert [path.name for path in tmp_path.iterdir()] == ["case 7"]

    @pytest.mark.parametrize("typed", ["", "   ", "other"])
    def test_no_name_and_that_of_another_case_are_refused(self, analysed: Any, scene: Any, typed: str) -> None:
        from MTMed3DLib.scene import StudyScene

        StudyScene(scene, "other").text_node("grade")
        before = analysed.ui.caseNameEdit.text
        analysed.ui.caseNameEdit.text = typed
        analysed.ui.caseNameEdit.editingFinished.emit()
        assert analysed.ui.caseNameEdit.text == before == analysed.findings.study.study_id
        assert "name" in analysed.ui.exportLabel.text or "called “other”" in analysed.ui.exportLabel.text

    def test_an_opened_case_that_is_analysed_again_keeps_its_decisions(
        self, analysed: Any, scene: Any, worker: Any, let: Any, tmp_path: Path
    ) -> None:
        choose(analysed, 0)
        analysed.ui.keepButton.click()
        analysed.ui.exportFolder.setCurrentPath(str(tmp_path))
        analysed.ui.reportCheck.checked = False
        export(analysed, let)
        folder = exported(analysed)
        scene.Clear(0)
        let(lambda: analysed.findings.study is None)
        analysed.export.open(folder)
        let(lambda: not analysed.export.busy and analysed.ui.analyzeButton.enabled)
        analysed.ui.analyzeButton.click()
        worker.finish()
        let(lambda: analysed.ui.analyzeButton.text == "Analyze")
        assert "kept" in states(analysed)
        assert analysed.findings.study.study_id == folder.name
