"""The panel's section *Prepare*: what an analysis says of its preparation, the brain mask, an earlier result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panel_driver import SHAPE, ObedientWorker, add_study, add_volume

GIVEN = (slice(8, 30), slice(10, 34), slice(6, 28))
"""Of the T1ce, what the reader's mask marks."""


@pytest.fixture
def prepared(panel: Any, scene: Any, worker: ObedientWorker, let: Any) -> Any:
    """A panel after an analysis whose registrations were good, doubtful and failed."""
    add_study(scene)
    let(lambda: panel.ui.analyzeButton.enabled)
    analyse(panel, worker, let)
    return panel


def analyse(panel: Any, worker: ObedientWorker, let: Any) -> None:
    """Click Analyze, and let the worker find what it finds."""
    panel.ui.analyzeButton.click()
    worker.finish(verdicts=("good", "doubtful", "failed"))
    let(lambda: panel.ui.analyzeButton.text == "Analyze")
    assert panel.analysis.failure is None, str(panel.analysis.failure)


def label_map(scene: Any, beside: Any, name: str = "my brain") -> Any:
    """A label map of `GIVEN` on the grid of a volume, under the value 3."""
    import slicer

    labels = np.zeros(SHAPE, np.uint8)
    labels[GIVEN] = 3
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(labels.T))
    node.CopyOrientation(beside)
    return node


def voxels_marked(panel: Any) -> np.ndarray:
    """What the node of the brain mask marks of the T1ce."""
    from MTMed3DLib.brain import voxels_of_mask

    study = panel.findings.study
    return voxels_of_mask(study.brain, study.t1ce)


class TestQuality:
    def test_before_an_analysis_there_is_nothing_to_say(self, panel: Any) -> None:
        assert panel.ui.t2Quality.text == "not analysed yet"
        assert not panel.ui.maskVisible.enabled

    def test_every_registration_is_told_in_words_and_figures_and_coloured_where_it_is_doubted(
        self, prepared: Any
    ) -> None:
        ui = prepared.ui
        assert ui.t1Quality.text == "good; two runs end 0.4 mm apart; moved 5.1 mm, turned 3.2\u00b0"
        assert "doubtful, compare the two by eye; two runs end 2.5 mm apart" in ui.t2Quality.text
        assert "failed, left where its header puts it; two runs end 9.0 mm apart" in ui.flairQuality.text
        from MTMed3DLib.panel_prepare import COLORS

        assert COLORS["doubt"] in ui.t2Quality.text
        assert COLORS["alarm"] in ui.flairQuality.text
        assert "color" not in ui.t1Quality.text

    def test_the_folded_title_says_that_something_needs_the_reader(self, prepared: Any) -> None:
        assert prepared.ui.prepareSection.collapsed
        assert prepared.ui.prepareSection.text == "Prepare \u2013 needs a correction"

    def test_the_source_and_size_of_the_brain_mask_are_told(self, prepared: Any) -> None:
        millilitres = 32 * 34 * 24 * 8 / 1000
        assert f"built-in method, approximate; {millilitres:.0f} ml" in prepared.ui.maskQuality.text

    def test_a_result_without_a_record_says_that_it_has_none(self, analysed: Any) -> None:
        assert analysed.ui.t1Quality.text == analysed.ui.maskQuality.text == "not recorded"
        assert analysed.findings.study.brain is None
        assert not analysed.ui.maskVisible.enabled

    def test_a_scene_that_is_loaded_again_still_tells_it(
        self, prepared: Any, scene: Any, let: Any, tmp_path: Path
    ) -> None:
        told, marked = prepared.ui.flairQuality.text, voxels_marked(prepared)
        assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
        scene.Clear(0)
        let(lambda: prepared.findings.study is None)
        assert prepared.ui.flairQuality.text == "not analysed yet"
        assert scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
        let(lambda: prepared.findings.study is not None)
        assert prepared.ui.flairQuality.text == told
        np.testing.assert_array_equal(voxels_marked(prepared), marked)


class TestMask:
    def test_the_mask_is_a_hidden_outline_until_the_reader_wants_to_see_it(self, prepared: Any) -> None:
        node = prepared.findings.study.brain
        assert voxels_marked(prepared).sum() == 32 * 34 * 24
        assert voxels_marked(prepared)[4:-4, 5:-5, 6:-6].all()
        assert not node.GetDisplayVisibility()
        prepared.ui.maskVisible.checked = True
        assert node.GetDisplayVisibility()
        assert not node.GetDisplayNode().GetSegmentVisibility2DFill("brain")
        prepared.ui.maskVisible.checked = False
        assert not node.GetDisplayVisibility()

    def test_the_reader_s_label_map_goes_to_the_analysis_in_the_frame_of_the_t1ce(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        from scene_helpers import add_transform, rigid

        from MTMed3DCore.preparation.record import read_mask
        from MTMed3DCore.volume import read_volume

        nodes = add_study(scene)
        mask = label_map(scene, nodes["t1ce"])
        parent = add_transform(scene, "head", rigid(20.0, (5.0, -3.0, 8.0)))
        for node in (*nodes.values(), mask):
            node.SetAndObserveTransformNodeID(parent.GetID())
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.maskSelector.setCurrentNode(mask)
        panel.ui.analyzeButton.click()
        let(lambda: bool(worker.analyses()))
        (request,) = worker.analyses()
        handed = read_mask(request["mask"], read_volume(request["inputs"]["t1ce"]).grid)
        expected = np.zeros(SHAPE, bool)
        expected[GIVEN] = True
        np.testing.assert_array_equal(handed, expected)
        worker.finish(verdicts=("not-needed", "not-needed", "not-needed"))
        let(lambda: panel.findings.study is not None)
        assert panel.ui.maskQuality.text.startswith("given by the user; ")
        np.testing.assert_array_equal(voxels_marked(panel), expected)
        assert panel.ui.prepareSection.text == "Prepare"

    def test_the_mask_that_was_corrected_by_hand_is_used_and_kept(
        self, prepared: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        from MTMed3DCore.preparation.record import read_mask
        from MTMed3DCore.volume import read_volume

        study = prepared.findings.study
        node, corrected = study.brain, draw(study, study.brain, GIVEN)
        prepared.ui.maskSelector.setCurrentNode(node)
        prepared.ui.analyzeButton.click()
        let(lambda: len(worker.analyses()) == 2)
        request = worker.analyses()[-1]
        handed = read_mask(request["mask"], read_volume(request["inputs"]["t1ce"]).grid)
        np.testing.assert_array_equal(handed, corrected)
        worker.finish(verdicts=("good", "good", "good"))
        let(lambda: prepared.ui.analyzeButton.text == "Analyze")
        assert prepared.findings.study.brain is node
        np.testing.assert_array_equal(voxels_marked(prepared), corrected)

    def test_a_further_analysis_replaces_an_untouched_mask_and_no_edited_one(
        self, prepared: Any, worker: ObedientWorker, let: Any
    ) -> None:
        found = voxels_marked(prepared)
        analyse(prepared, worker, let)
        np.testing.assert_array_equal(voxels_marked(prepared), found)
        study = prepared.findings.study
        corrected = draw(study, study.brain, GIVEN)
        analyse(prepared, worker, let)
        np.testing.assert_array_equal(voxels_marked(prepared), corrected)
        assert any("that you edited was kept" in notice for notice in prepared.analysis.notices)

    def test_the_tumour_regions_are_refused_as_a_brain_mask(self, prepared: Any) -> None:
        prepared.ui.maskSelector.setCurrentNode(prepared.findings.study.segmentation)
        assert not prepared.ui.analyzeButton.enabled
        assert "holds the tumour regions of a result" in prepared.ui.reasonsLabel.text

    def test_an_empty_mask_is_a_failure_in_words(self, panel: Any, scene: Any, let: Any) -> None:
        nodes = add_study(scene)
        mask = label_map(scene, nodes["t1ce"])
        mask.GetImageData().GetPointData().GetScalars().Fill(0)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.maskSelector.setCurrentNode(mask)
        panel.ui.analyzeButton.click()
        assert "The brain mask (my brain) marks no voxel of the T1ce." in panel.ui.stageLabel.text

    def test_a_mask_is_let_go_when_another_t1ce_is_chosen(self, panel: Any, scene: Any, let: Any) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        mask = label_map(scene, nodes["t1ce"])
        panel.ui.maskSelector.setCurrentNode(mask)
        panel.ui.t2Selector.setCurrentNode(add_volume(scene, "another T2"))
        assert panel.prepare.mask is mask
        panel.ui.t1ceSelector.setCurrentNode(add_volume(scene, "another T1ce"))
        assert panel.prepare.mask is None

    def test_the_reader_s_own_mask_is_never_touched(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any
    ) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        mask = label_map(scene, nodes["t1ce"])
        panel.ui.maskSelector.setCurrentNode(mask)
        before, name = mask.GetImageData().GetMTime(), mask.GetName()
        analyse(panel, worker, let)
        study = panel.findings.study
        assert (mask.GetImageData().GetMTime(), mask.GetName()) == (before, name)
        assert list(mask.GetAttributeNames()) == []
        study.remove()
        assert scene.IsNodePresent(mask)

    def test_the_chosen_mask_is_remembered_with_the_scene(self, panel: Any, scene: Any, let: Any) -> None:
        nodes = add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        mask = label_map(scene, nodes["t1ce"])
        panel.ui.maskSelector.setCurrentNode(mask)
        panel.ui.maskSelector.blockSignals(True)
        panel.ui.maskSelector.setCurrentNode(None)
        panel.ui.maskSelector.blockSignals(False)
        panel.prepare.restore()
        assert panel.prepare.mask is mask


def draw(study: Any, node: Any, where: tuple[slice, slice, slice]) -> np.ndarray:
    """What the Segment Editor does: let the segment of a brain mask be this block; returns its voxels."""
    import slicer

    from MTMed3DLib.nodes import oriented_image

    mask = np.zeros(study.grid.shape, np.uint8)
    mask[where] = 1
    image = oriented_image(mask, study.grid.affine)
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, node, "brain")
    return mask.astype(bool)


class TestEarlierResult:
    def test_what_has_changed_since_an_earlier_result_is_told_above_the_warnings(
        self, panel: Any, scene: Any, worker: ObedientWorker, let: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "findings.json").write_text("{}")
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.priorFolder.currentPath = str(tmp_path)
        analyse(panel, worker, let)
        (request,) = worker.analyses()
        assert request["prior"] == str(tmp_path)
        assert panel.ui.comparisonLabel.text.startswith("Prior study last year, analysed ")

    def test_without_one_nothing_is_compared(self, prepared: Any, worker: ObedientWorker) -> None:
        assert "prior" not in worker.analyses()[-1]
        assert prepared.ui.comparisonLabel.text == ""

    def test_a_folder_without_a_result_is_refused_before_the_analysis(
        self, panel: Any, scene: Any, let: Any, tmp_path: Path
    ) -> None:
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.priorFolder.currentPath = str(tmp_path)
        let(lambda: not panel.ui.analyzeButton.enabled)
        assert f"{tmp_path} holds no result to compare with" in panel.ui.reasonsLabel.text
        panel.ui.priorFolder.currentPath = ""
        let(lambda: panel.ui.analyzeButton.enabled)

    def test_it_is_let_go_when_another_t1ce_is_chosen(self, panel: Any, scene: Any, let: Any, tmp_path: Path) -> None:
        (tmp_path / "findings.json").write_text("{}")
        add_study(scene)
        let(lambda: panel.ui.analyzeButton.enabled)
        panel.ui.priorFolder.currentPath = str(tmp_path)
        panel.ui.t1ceSelector.setCurrentNode(add_volume(scene, "another t1ce"))
        assert panel.prepare.prior is None
