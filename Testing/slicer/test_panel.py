"""The panel, driven as a person would, on a real scene and real Qt, with a worker that does what the test says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from panel_driver import THRESHOLD, ObedientWorker, add_study, add_volume, texts_of


class TestStudy:
    def test_the_volumes_are_filled_in_by_their_names(self, panel: Any, scene: Any, let: Any) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        assert {name: node.GetID() for name, node in panel.study.nodes.items()} == {
            name: node.GetID() for name, node in nodes.items()
        }

    def test_what_somebody_chose_is_not_replaced_by_a_later_volume(self, panel: Any, scene: Any, let: Any) -> None:
        mine = add_volume(scene, "unnamed")
        panel.ui.t2Selector.setCurrentNode(mine)
        add_study(scene)
        let(lambda: panel.study.nodes["t1"] is not None)
        assert panel.study.nodes["t2"] is mine

    def test_every_reason_is_in_the_tooltip_and_under_the_button(self, panel: Any, scene: Any, let: Any) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.flairSelector.setCurrentNode(nodes["t2"])
        panel.ui.t1Selector.setCurrentNode(None)
        assert not panel.ui.analyzeButton.enabled
        for text in (panel.ui.analyzeButton.toolTip, panel.ui.reasonsLabel.text):
            assert "T1 is not chosen." in text
            assert "FLAIR is the same volume as T2." in text
        assert panel.ui.reasonsLabel.visible

    def test_a_volume_moved_away_by_a_transform_is_noticed_without_a_click(
        self, panel: Any, scene: Any, let: Any
    ) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        nodes["flair"].SetAndObserveTransformNodeID(transform.GetID())
        matrix = transform.GetMatrixTransformToParent()
        matrix.SetElement(0, 3, 1000.0)
        transform.SetMatrixTransformToParent(matrix)
        let(lambda: not panel.ui.analyzeButton.enabled)
        assert "FLAIR does not overlap T1ce in space." in panel.ui.analyzeButton.toolTip

    def test_models_and_devices_of_the_worker_are_offered(self, panel: Any, worker: ObedientWorker, let: Any) -> None:
        worker.answer("models", models=[{"name": "other", "version": "2.0"}, {"name": "starter", "version": "1.0"}])
        worker.answer(
            "devices", devices=[{"device": "auto", "text": "automatic (cpu)"}, {"device": "cpu", "text": "CPU"}]
        )
        let(lambda: panel.ui.deviceCombo.count == 2)
        assert panel.ui.modelCombo.currentText == "starter 1.0"
        panel.ui.deviceCombo.setCurrentIndex(1)
        assert (panel.study.model, panel.study.device) == ("starter", "cpu")


class TestRun:
    def test_the_button_becomes_cancel_and_the_stage_is_in_words(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        assert panel.ui.analyzeButton.text == "Cancel"
        worker.progress("infer", 0.5, "Window 4 of 8")
        let(lambda: "Window 4 of 8" in panel.ui.stageLabel.text)
        assert panel.ui.stageLabel.text.startswith("Analysing: Window 4 of 8 \u2013 56%, ")
        assert panel.ui.progressBar.value == 560
        assert not panel.ui.t1Selector.enabled
        worker.finish()
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert panel.ui.t1Selector.enabled

    def test_progress_never_goes_back(self, panel: Any, scene: Any, worker: ObedientWorker, let: Any) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        worker.progress("infer", 0.5, "a")
        worker.progress("prepare", 0.1, "b")
        let(lambda: "b" in panel.ui.stageLabel.text)
        assert panel.analysis.fraction == pytest.approx(0.56)

    def test_the_inputs_are_removed_when_the_run_is_over(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 1)
        folder = Path(worker.analyses()[0]["inputs"]["t1"]).parent
        assert sorted(path.name for path in folder.iterdir()) == ["flair.nrrd", "t1.nrrd", "t1ce.nrrd", "t2.nrrd"]
        worker.finish()
        let(lambda: panel.findings.study is not None)
        assert not folder.exists()

    def test_cancel_leaves_the_scene_as_it_was(self, panel: Any, scene: Any, worker: ObedientWorker, let: Any) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        before = scene.GetNumberOfNodes()
        panel.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 1)
        panel.ui.analyzeButton.click()
        assert panel.ui.analyzeButton.text == "Cancelling..."
        assert worker.sent[-1]["target"] == worker.analyses()[0]["id"]
        worker.fail("cancelled", "Cancelled.")
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert panel.ui.stageLabel.text == "Cancelled."
        assert scene.GetNumberOfNodes() == before
        assert worker.stopped == 0

    def test_a_worker_that_does_not_stop_is_ended(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 1)
        panel.ui.analyzeButton.click()
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert worker.stopped == 1

    def test_a_result_that_arrives_after_the_cancel_is_dropped(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 1)
        panel.ui.analyzeButton.click()
        worker.finish()
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert panel.findings.study is None
        assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0

    def test_a_refusal_is_shown_with_its_remedy(self, panel: Any, scene: Any, worker: ObedientWorker, let: Any) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        worker.fail("model-unknown", "There is no model 'x'.", "Give a known name.")
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert panel.ui.stageLabel.text == "There is no model 'x'. Give a known name."
        assert panel.ui.analyzeButton.enabled

    @pytest.mark.parametrize("code", ["memory", "out-of-memory"])
    def test_when_the_memory_of_the_gpu_runs_out_the_cpu_goes_on_and_says_so(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any, code: str
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        worker.fail(code, "The memory of the device 'cuda' does not suffice for this request.")
        let(lambda: len(worker.analyses()) == 2)
        assert [request["device"] for request in worker.analyses()] == ["auto", "cpu"]
        assert "The memory of the GPU did not suffice" in panel.ui.stageLabel.text
        worker.finish()
        let(lambda: panel.findings.study is not None)
        assert "The memory of the GPU did not suffice" in panel.ui.stageLabel.text

    def test_when_the_memory_of_the_cpu_runs_out_it_is_not_tried_again(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        worker.answer(
            "devices", devices=[{"device": "auto", "text": "automatic (cpu)"}, {"device": "cpu", "text": "CPU"}]
        )
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled and panel.ui.deviceCombo.count == 2)
        panel.ui.analyzeButton.click()
        worker.fail("memory", "The memory does not suffice to analyse this study.")
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert len(worker.analyses()) == 1

    def test_the_log_opens_and_is_copied(self, panel: Any, worker: ObedientWorker) -> None:
        import qt

        assert not panel.ui.logFrame.visible
        panel.ui.logButton.click()
        assert panel.ui.logFrame.visible
        assert panel.ui.logText.plainText == "a line of the log"
        panel.ui.copyLogButton.click()
        assert qt.QApplication.clipboard().text() == "a line of the log"


class TestInterruptions:
    def test_closing_the_scene_during_a_run_ends_it(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 1)
        scene.Clear(0)
        worker.finish()
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert not panel.ui.analyzeButton.enabled
        assert scene.GetNumberOfNodesByClass("vtkMRMLMarkupsROINode") == 0

    def test_deleting_the_t1ce_during_a_run_drops_the_result_and_says_so(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        scene.RemoveNode(nodes["t1ce"])
        worker.finish()
        let(lambda: panel.ui.analyzeButton.text == "Analyze")
        assert "T1ce volume was removed" in panel.ui.stageLabel.text
        assert panel.findings.study is None

    def test_unloading_the_module_during_a_run_ends_the_worker_and_every_observer(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 1)
        folder = Path(worker.analyses()[0]["inputs"]["t1"]).parent
        panel.close()
        assert worker.stopped == 1
        assert not folder.exists()
        assert panel.Observations == []
        add_volume(scene, "after")  # nobody listens any more

    def test_deleting_the_result_empties_the_findings(self, analysed: Any, scene: Any, let: Any) -> None:
        analysed.findings.study.remove()
        let(lambda: analysed.findings.study is None)
        assert texts_of(analysed.ui.lesionTable) == []
        assert not analysed.ui.gradeCombo.enabled

    def test_a_run_goes_on_while_another_module_is_looked_at(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        panel.leave()
        worker.finish()
        let(lambda: panel.findings.study is not None)


class TestFindings:
    def test_grade_lesions_and_volumes_are_shown(self, analysed: Any) -> None:
        assert "HGG" in analysed.ui.gradeLabel.text
        assert "0.93" in analysed.ui.gradeLabel.text
        assert analysed.ui.modelLabel.text == "obedient 1.0"
        rows = texts_of(analysed.ui.lesionTable)
        assert [row[0] for row in rows] == ["1", "2"]
        assert analysed.ui.shownLabel.text == "2 of 2"  # whatever the model reports is shown until somebody filters
        assert rows[0][1:] == ["0.95", "28 x 28 x 24", "18.8", "3.6", "proposed"]
        assert analysed.ui.wholeTumourVolume.text == "18.8 ml"
        assert analysed.ui.tumourCoreVolume.text == "4.1 ml"

    def test_research_use_only_is_in_sight(self, panel: Any) -> None:
        assert "Research use only" in panel.ui.noticeLabel.text
        assert panel.ui.noticeLabel.visible

    def test_a_click_on_a_lesion_centres_the_slice_views(self, analysed: Any, scene: Any) -> None:
        view = scene.AddNewNodeByClass("vtkMRMLSliceNode")
        view.SetLayoutName("Red")
        view.SetOrientationToAxial()
        analysed.ui.lesionTable.cellClicked.emit(1, 0)
        centre = analysed.findings.study.centre_on(analysed.findings.study.boxes()[1])
        assert view.GetSliceToRAS().GetElement(2, 3) == pytest.approx(centre[2])

    def test_the_confidence_slider_filters_boxes_and_rows(self, analysed: Any) -> None:
        analysed.ui.confidenceSlider.value = 0.9
        assert [row[0] for row in texts_of(analysed.ui.lesionTable)] == ["1"]
        assert [bool(box.GetDisplayVisibility()) for box in analysed.findings.study.boxes()] == [True, False]
        analysed.ui.confidenceSlider.value = 0.0
        assert [row[0] for row in texts_of(analysed.ui.lesionTable)] == ["1", "2"]

    def test_the_slider_starts_where_the_model_starts_to_report(self, analysed: Any) -> None:
        assert analysed.ui.confidenceSlider.value == pytest.approx(THRESHOLD)
        assert analysed.ui.shownLabel.text == "2 of 2"

    def test_a_filter_stays_for_its_study_and_does_not_hide_boxes_of_another(
        self, analysed: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        analysed.ui.confidenceSlider.value = 0.9
        analysed.ui.analyzeButton.click()
        worker.finish()
        let(lambda: analysed.ui.analyzeButton.text == "Analyze")
        assert analysed.ui.shownLabel.text == "1 of 2"
        analysed.study.choose(add_study(scene, "Second"))
        analysed.ui.analyzeButton.click()
        worker.finish()
        let(lambda: analysed.findings.study is not None)
        assert analysed.ui.shownLabel.text == "2 of 2"

    def test_volumes_are_measured_without_the_t1ce_volume_too(self, analysed: Any, scene: Any, let: Any) -> None:
        scene.RemoveNode(analysed.study.nodes["t1ce"])
        analysed.ui.wholeTumourVolume.text = ""
        let(lambda: analysed.ui.wholeTumourVolume.text == "18.8 ml")

    def test_fifty_boxes_are_filtered_at_every_position_of_the_slider(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.analyzeButton.click()
        worker.finish(lesions=50)
        let(lambda: panel.findings.study is not None)
        scores = [panel.findings.study.score(box) for box in panel.findings.study.boxes()]
        for value in (0.3, 0.5, 0.7, 0.2, 0.0):
            panel.ui.confidenceSlider.value = value
            assert len(texts_of(panel.ui.lesionTable)) == sum(score >= value for score in scores)
        assert len(texts_of(panel.ui.lesionTable)) == 50

    def test_a_region_is_hidden_and_made_translucent(self, analysed: Any) -> None:
        display = analysed.findings.study.segmentation.GetDisplayNode()
        analysed.ui.oedemaVisible.click()
        analysed.ui.enhancingOpacity.value = 0.25
        assert not display.GetSegmentVisibility("oedema")
        assert display.GetSegmentVisibility("enhancing")
        assert display.GetSegmentOpacity2DFill("enhancing") == pytest.approx(0.25)
        assert display.GetSegmentOpacity3D("enhancing") == pytest.approx(0.25)

    def test_show_3d_makes_surfaces_once_and_hides_them_again(self, analysed: Any) -> None:
        segmentation = analysed.findings.study.segmentation
        analysed.ui.show3DButton.click()
        assert segmentation.GetSegmentation().ContainsRepresentation("Closed surface")
        analysed.ui.show3DButton.click()
        assert not segmentation.GetDisplayNode().GetVisibility3D()
