"""The panel's buttons for boxes, and its sections *Correct* and *Review*: what the reader decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from MTMed3DLib.attributes import REJECTED
from MTMed3DLib.panel_findings import FindingsSection
from MTMed3DLib.review import DIFFICULTIES, GRADES, VERDICTS, Review

ERASE = "Erase the regions of rejected boxes"
FIRST_VERDICT, FIRST_DIFFICULTY = "not yet reviewed", "not stated"


class ReviewSection:
    """Widgets of the sections; every decision goes through `Review`, which keeps it in the scene.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
        findings: knows the chosen box, and shows what came of a decision.
        say: shows a sentence to the reader.
    """

    def __init__(self, ui: Any, scene: Any, findings: FindingsSection, say: Callable[[str], None]) -> None:
        self.ui, self.scene, self.findings, self._say = ui, scene, findings, say
        self.review: Review | None = None
        self._showing = False
        self._fill(ui.verdictCombo, [FIRST_VERDICT, *VERDICTS[1:]])
        self._fill(ui.difficultyCombo, [FIRST_DIFFICULTY, *DIFFICULTIES[1:]])
        self._fill(ui.gradeCombo, ["as the model says", *(f"{grade}, set by the reader" for grade in GRADES)])
        ui.keepButton.connect("clicked()", self._on_keep)
        ui.rejectButton.connect("clicked()", self._on_reject)
        ui.editButton.connect("toggled(bool)", self._on_edit)
        ui.addButton.connect("clicked()", self._on_add)
        ui.fitBoxButton.connect("clicked()", self._on_fit)
        ui.regionFromBoxButton.connect("clicked()", self._on_region)
        ui.eraseRejectedButton.connect("clicked()", self._on_erase)
        ui.gradeCombo.connect("currentIndexChanged(int)", self._on_grade)
        ui.verdictCombo.connect("currentIndexChanged(int)", self._on_verdict)
        ui.difficultyCombo.connect("currentIndexChanged(int)", self._on_difficulty)
        ui.commentEdit.connect("textChanged()", self._on_comment)
        ui.lesionTable.connect("itemSelectionChanged()", self._on_selection)
        self.show(None)

    def show(self, study: Any) -> None:
        """Show a study, or none."""
        self.review = None if study is None or study.grade_text is None else Review(study)
        self._showing = True
        for widget in (self.ui.verdictCombo, self.ui.difficultyCombo, self.ui.commentEdit, self.ui.addButton):
            widget.enabled = self.review is not None
        review = self.review
        self.ui.verdictCombo.setCurrentIndex(0 if review is None else VERDICTS.index(review.verdict))
        self.ui.difficultyCombo.setCurrentIndex(0 if review is None else DIFFICULTIES.index(review.difficulty))
        comment = "" if review is None else review.comment
        if self.ui.commentEdit.plainText != comment:
            self.ui.commentEdit.setPlainText(comment)
        grade = None if review is None else review.grade
        self.ui.gradeCombo.setCurrentIndex(0 if grade is None else 1 + GRADES.index(grade))
        self._showing = False
        self._embed_editor(study)
        self._on_selection()

    def leave(self) -> None:
        """The panel is no longer looked at: end the editing that it started."""
        self.ui.segmentEditor.setActiveEffectByName("")
        self.ui.segmentEditor.uninstallKeyboardShortcuts()

    def _embed_editor(self, study: Any) -> None:
        editor = self.ui.segmentEditor
        node = None if study is None else study.segmentation
        if node is None:
            editor.setSegmentationNode(None)
            editor.setSourceVolumeNode(None)
            return
        editor.setMRMLSegmentEditorNode(self._editor_node())
        if editor.segmentationNode() is not node:
            editor.setSegmentationNode(node)
        if editor.sourceVolumeNode() is not study.t1ce:
            editor.setSourceVolumeNode(study.t1ce)

    def _editor_node(self) -> Any:
        """Our own Segment Editor node, so that the Segment Editor module keeps its own choices."""
        node = self.scene.GetSingletonNode("MTMed3D", "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag("MTMed3D")
            node = self.scene.AddNode(node)
        return node

    @staticmethod
    def _fill(combo: Any, texts: list[str]) -> None:
        combo.blockSignals(True)
        combo.clear()
        combo.addItems(texts)
        combo.blockSignals(False)

    def _on_selection(self) -> None:
        review = self.review
        rejected = [] if review is None else [b for b in review.study.boxes() if review.state(b) == REJECTED]
        self.ui.eraseRejectedButton.enabled = bool(rejected)
        chosen = self.review is not None and self.findings.selected is not None
        buttons = (self.ui.keepButton, self.ui.rejectButton, self.ui.editButton)
        for button in (*buttons, self.ui.fitBoxButton, self.ui.regionFromBoxButton):
            button.enabled = chosen
        edited = self.review.edited_now if self.review is not None else None
        mine = chosen and edited is not None and edited.GetID() == self.findings.selected.GetID()
        if self.ui.editButton.checked != mine:
            self.ui.editButton.blockSignals(True)
            self.ui.editButton.checked = mine
            self.ui.editButton.blockSignals(False)

    def _on_keep(self) -> None:
        if self.review is not None:
            self.review.keep(self.findings.selected)
            self.findings.refresh_states()
            self._on_selection()

    def _on_reject(self) -> None:
        if self.review is not None:
            self.review.reject(self.findings.selected)
            self.findings.refresh_states()
            self._on_selection()
            left = self.review.rejected_ml()
            if left:
                self._say(f"{left:.1f} ml of the regions lie in rejected boxes alone; “{ERASE}” takes them out.")

    def _on_erase(self) -> None:
        if self.review is not None:
            taken = self.review.erase_rejected()
            self._say(f"{taken:.1f} ml in rejected boxes were taken out of the regions.")
            self.findings.refresh()

    def _on_edit(self, on: bool) -> None:
        if self.review is None:
            return
        if on:
            self.review.finish_edit()
            self.review.edit(self.findings.selected)
            self.findings.centre_on(self.findings.selected)
        else:
            self.review.finish_edit()
        self.findings.refresh()

    def _on_add(self) -> None:
        if self.review is None:
            return
        if self.review.study.t1ce is None:
            self._say("The T1ce volume is no longer in the scene; a box needs it.")
            return
        self.review.finish_edit()
        box = self.review.add_box(self._looked_at())
        self.findings.refresh()
        self.findings.select(box)

    def _on_fit(self) -> None:
        if self.review is not None:
            if not self.review.fit_box_to_region(self.findings.selected):
                self._say("The box touches no region, so there is nothing to fit it to.")
            self.findings.refresh()

    def _on_region(self) -> None:
        if self.review is not None:
            taken = self.review.region_from_box(self.findings.selected)
            self._say(f"{taken:.1f} ml outside of the box were taken out of the regions.")
            self.findings.refresh()

    def _on_grade(self, index: int) -> None:
        if self.review is None or self._showing:
            return
        if index <= 0:
            self.review.clear_grade()
        else:
            self.review.set_grade(GRADES[index - 1])

    def _on_verdict(self, index: int) -> None:
        if self.review is not None and not self._showing:
            self.review.verdict = VERDICTS[max(0, index)]

    def _on_difficulty(self, index: int) -> None:
        if self.review is not None and not self._showing:
            self.review.difficulty = DIFFICULTIES[max(0, index)]

    def _on_comment(self) -> None:
        if self.review is not None and not self._showing:
            self.review.comment = self.ui.commentEdit.plainText

    def _looked_at(self) -> list[float]:
        """World RAS mm where the crosshair is, else the middle of the first slice view, else of T1ce."""
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None and crosshair.GetCrosshairMode() != slicer.vtkMRMLCrosshairNode.NoCrosshair:
            return [float(value) for value in crosshair.GetCrosshairRAS()]
        view = self.scene.GetFirstNodeByClass("vtkMRMLSliceNode")
        if view is not None:
            return [view.GetSliceToRAS().GetElement(row, 3) for row in range(3)]
        bounds = [0.0] * 6
        self.findings.study.t1ce.GetRASBounds(bounds)
        return [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]
