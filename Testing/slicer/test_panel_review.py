"""Reviewing and exporting through the panel, and what the scene keeps of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from panel_driver import add_study, choose, states, texts_of

MIDDLE = (40.0, 44.0, 36.0)
"""World RAS mm of the middle of the small study."""


class TestBoxes:
    def test_without_a_chosen_lesion_no_box_can_be_changed(self, panel: Any) -> None:
        names = ("keepButton", "rejectButton", "editButton", "addButton", "fitBoxButton", "regionFromBoxButton")
        assert [getattr(panel.ui, name).enabled for name in names] == [False] * 6

    def test_keep_and_reject_are_marked_and_shown(self, analysed: Any) -> None:
        kept = choose(analysed, 0)
        analysed.ui.keepButton.click()
        rejected = choose(analysed, 1)
        analysed.ui.rejectButton.click()
        assert states(analysed) == ["kept", "rejected"]
        assert kept.GetDisplayVisibility()
        assert not rejected.GetDisplayVisibility()
        assert analysed.review.review.decided_at(kept)

    def test_only_the_box_being_edited_has_handles(self, analysed: Any) -> None:
        boxes = analysed.findings.study.boxes()
        for row in (0, 1):
            choose(analysed, row)
            if not analysed.ui.editButton.checked:
                analysed.ui.editButton.click()
            handles = [bool(box.GetDisplayNode().GetHandlesInteractive()) for box in boxes]
            assert handles == [row == 0, row == 1]
        analysed.ui.editButton.click()
        assert not any(box.GetDisplayNode().GetHandlesInteractive() for box in boxes)

    def test_a_dragged_box_is_edited_and_measured_again(self, analysed: Any, let: Any) -> None:
        box = choose(analysed, 0)
        analysed.ui.editButton.click()
        box.SetSize(10.0, 28.0, 24.0)
        let(lambda: texts_of(analysed.ui.lesionTable)[0][2] == "10 x 28 x 24")
        assert states(analysed)[0] == "edited"

    def test_an_added_box_lies_where_the_crosshair_is(self, analysed: Any, scene: Any) -> None:
        import slicer

        crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowBasic)
        crosshair.SetCrosshairRAS(*MIDDLE)
        analysed.ui.addButton.click()
        crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.NoCrosshair)
        assert states(analysed) == ["proposed", "proposed", "added"]
        np.testing.assert_allclose(analysed.findings.study.centre_on(analysed.findings.selected), MIDDLE)
        assert analysed.ui.editButton.checked

    def test_a_box_is_fitted_to_the_region_that_it_touches(self, analysed: Any) -> None:
        box = choose(analysed, 1)
        box.SetSize(8.0, 8.0, 8.0)
        analysed.ui.fitBoxButton.click()
        assert texts_of(analysed.ui.lesionTable)[1][2] == "28 x 28 x 24"
        assert states(analysed)[1] == "edited"

    def test_regions_outside_of_the_box_are_taken_away(self, analysed: Any) -> None:
        box = choose(analysed, 0)
        before = analysed.findings.study.volumes_ml()["whole_tumour"]
        box.SetSize(14.0, 28.0, 24.0)
        analysed.ui.regionFromBoxButton.click()
        after = analysed.findings.study.volumes_ml()["whole_tumour"]
        assert after < before
        assert analysed.ui.wholeTumourVolume.text == f"{after:.1f} ml"
        assert f"{before - after:.1f} ml" in analysed.ui.stageLabel.text


class TestDecisions:
    def test_a_new_run_keeps_what_the_reader_decided_and_says_so(self, analysed: Any, worker: Any, let: Any) -> None:
        choose(analysed, 0)
        analysed.ui.keepButton.click()
        analysed.ui.gradeCombo.setCurrentIndex(2)
        analysed.ui.verdictCombo.setCurrentIndex(1)
        analysed.ui.commentEdit.setPlainText("left temporal")
        analysed.ui.analyzeButton.click()
        worker.finish()
        let(lambda: analysed.ui.analyzeButton.text == "Analyze")
        assert "kept" in states(analysed)
        assert "boxes of the reader were kept" in analysed.ui.stageLabel.text
        review = analysed.review.review
        assert (review.grade, review.verdict, review.comment) == ("LGG", "accept", "left temporal")
        assert analysed.ui.gradeCombo.currentText == "LGG, set by the reader"

    def test_the_grade_can_be_left_to_the_model_again(self, analysed: Any) -> None:
        analysed.ui.gradeCombo.setCurrentIndex(1)
        assert "by the reader: HGG" in analysed.findings.study.grade_text.GetText()
        analysed.ui.gradeCombo.setCurrentIndex(0)
        assert analysed.review.review.grade is None
        assert "reader" not in analysed.findings.study.grade_text.GetText()

    def test_the_segment_editor_works_on_the_result(self, analysed: Any) -> None:
        editor = analysed.ui.segmentEditor
        assert editor.segmentationNode() is analysed.findings.study.segmentation
        assert editor.sourceVolumeNode() is analysed.study.nodes["t1ce"]

    def test_another_study_in_the_scene_has_findings_of_its_own(
        self, analysed: Any, scene: Any, worker: Any, let: Any
    ) -> None:
        first = analysed.findings.study.study_id
        other = add_study(scene, "Second")
        analysed.study.choose(other)
        assert analysed.findings.study is None
        assert texts_of(analysed.ui.lesionTable) == []
        analysed.ui.analyzeButton.click()
        worker.finish(lesions=1)
        let(lambda: analysed.findings.study is not None)
        assert len(texts_of(analysed.ui.lesionTable)) == 1
        analysed.study.choose({"t1ce": scene.GetFirstNodeByName("MR t1ce")})
        assert analysed.findings.study.study_id == first
        assert len(texts_of(analysed.ui.lesionTable)) == 2

    def test_twenty_runs_leave_as_many_nodes_as_one(self, analysed: Any, scene: Any, worker: Any, let: Any) -> None:
        nodes = scene.GetNumberOfNodes()
        observed = len(analysed.Observations)
        for _ in range(19):
            analysed.ui.analyzeButton.click()
            worker.finish()
            let(lambda: analysed.ui.analyzeButton.text == "Analyze")
        assert scene.GetNumberOfNodes() == nodes
        assert len(analysed.Observations) == observed


class TestReload:
    def test_a_scene_from_a_file_shows_its_study_with_every_decision(
        self, analysed: Any, scene: Any, tmp_path: Path, let: Any
    ) -> None:
        choose(analysed, 1)
        analysed.ui.rejectButton.click()
        analysed.ui.verdictCombo.setCurrentIndex(2)
        before = texts_of(analysed.ui.lesionTable)
        assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
        scene.Clear(0)
        assert texts_of(analysed.ui.lesionTable) == []
        assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
        let(lambda: analysed.findings.study is not None)
        assert texts_of(analysed.ui.lesionTable) == before
        assert analysed.ui.verdictCombo.currentText == "accept after correction"
        assert [node.GetName() for node in analysed.study.nodes.values()] == ["MR t1", "MR t1ce", "MR t2", "MR flair"]
        let(lambda: analysed.ui.analyzeButton.enabled)
