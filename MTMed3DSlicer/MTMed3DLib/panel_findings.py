"""The panel's section *Findings*: grade, lesions and regions of one study, and a click that goes there."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from MTMed3DLib.attributes import REJECTED
from MTMed3DLib.panel_regions import RegionRows

COLUMNS = ("lesion", "score", "size mm", "whole tumour ml", "enhancing ml", "state")
"""Keys of `StudyScene.rows` in the order of the table's columns."""
STATE = COLUMNS.index("state")
FEWEST_ROWS, MOST_ROWS = 2, 6
"""How many lesions the table has room for before it scrolls."""


class FindingsSection:
    """Widgets of the section.

    Args:
        ui: children of the panel by name.
        scene: vtkMRMLScene.
    """

    def __init__(self, ui: Any, scene: Any) -> None:
        self.ui, self.scene = ui, scene
        self.study: Any = None
        self.regions = RegionRows(ui)
        self._rois: list[Any] = []
        self._shown_name: str | None = None
        table = ui.lesionTable
        table.verticalHeader().setVisible(False)
        header = table.horizontalHeader()
        for column in range(len(COLUMNS)):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(STATE, qt.QHeaderView.Stretch)
        table.connect("cellClicked(int,int)", self._on_cell)
        ui.confidenceSlider.connect("valueChanged(double)", self.filter)
        self.show(None)

    @property
    def selected(self) -> Any:
        """The ROI node of the chosen row, or None."""
        row = self.ui.lesionTable.currentRow()
        return self._rois[row] if 0 <= row < len(self._rois) else None

    @property
    def shown_ids(self) -> list[str]:
        """IDs of the ROI nodes in the table."""
        return [roi.GetID() for roi in self._rois]

    def select(self, roi: Any) -> None:
        """Choose the row of a ROI node."""
        ids = self.shown_ids
        if roi is not None and roi.GetID() in ids:
            self.ui.lesionTable.selectRow(ids.index(roi.GetID()))

    def show(self, study: Any) -> None:
        """Show a study, or none; another one than before starts with every box that the model reports."""
        name = None if study is None else study.study_id
        other, self._shown_name = name != self._shown_name, name
        self.study = study
        there = study is not None
        for widget in (self.ui.gradeCombo, self.ui.confidenceSlider, self.ui.lesionTable):
            widget.enabled = there
        self.regions.show(study.segmentation if there else None)
        if there and other:
            self.ui.confidenceSlider.value = study.lowest_confidence
        self.refresh()

    def refresh(self) -> None:
        """Bring texts, table and volumes up to what the scene holds; measures every region, so not on every event."""
        chosen = self.selected
        self._rois = [] if self.study is None else self.study.boxes()
        measured = self.study is not None and self.study.segmentation is not None
        labels = self.study.labels() if measured else None
        rows = [] if self.study is None else self.study.rows(labels)
        table = self.ui.lesionTable
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, key in enumerate(COLUMNS):
                item = qt.QTableWidgetItem(row[key])
                item.setTextAlignment(qt.Qt.AlignVCenter | (qt.Qt.AlignLeft if column == STATE else qt.Qt.AlignRight))
                table.setItem(number, column, item)
        self.refresh_states()
        self.select(chosen)
        self.regions.show_volumes(self.study.volumes_ml(labels) if measured else {})
        self.refresh_grade()

    def refresh_states(self) -> None:
        """Bring only the states of the boxes up to date, which takes no time."""
        for number, roi in enumerate(self._rois):
            state = self.study.state(roi)
            self.ui.lesionTable.item(number, STATE).setText(state)
            group = qt.QPalette.Disabled if state == REJECTED else qt.QPalette.Active
            brush = qt.QBrush(self.ui.lesionTable.palette.color(group, qt.QPalette.Text))
            for column in range(len(COLUMNS)):
                self.ui.lesionTable.item(number, column).setForeground(brush)
        self.filter()

    def refresh_grade(self) -> None:
        """The grade, the model, its warnings and what has changed since an earlier study, in words."""
        findings = None if self.study is None else self.study.findings
        grade = None if findings is None else findings.grade
        self.ui.modelLabel.text = "" if findings is None else f"{findings.model.name} {findings.model.version}"
        if findings is None:
            self.ui.gradeLabel.text = "not analysed yet"
        elif grade is None:
            self.ui.gradeLabel.text = "the model gives none"
        else:
            sure = grade.probability_hgg if grade.label == "HGG" else 1 - grade.probability_hgg
            self.ui.gradeLabel.text = f"<b>{grade.label}</b> {sure:.2f} by the model"
        self.ui.comparisonLabel.text = _comparison(findings)
        self.ui.comparisonLabel.setVisible(bool(self.ui.comparisonLabel.text))
        texts = [] if findings is None else [warning.text for warning in findings.warnings]
        self.ui.warningsLabel.text = "\n".join(f"\u26a0 {text}" for text in texts)
        self.ui.warningsLabel.setVisible(bool(texts))

    def filter(self, *_: Any) -> None:
        """Show the boxes that are at least as sure as the slider says; a reader's boxes always."""
        if self.study is None:
            self.ui.shownLabel.text = ""
            return
        shown = self.study.set_confidence(self.ui.confidenceSlider.value)
        self.ui.shownLabel.text = f"{shown} of {len(self._rois)}"
        for number, roi in enumerate(self._rois):
            hidden = not roi.GetDisplayVisibility() and self.study.state(roi) != REJECTED
            self.ui.lesionTable.setRowHidden(number, hidden)
        table = self.ui.lesionTable
        rows = min(max(shown, FEWEST_ROWS), MOST_ROWS)
        height = table.horizontalHeader().height + rows * table.verticalHeader().defaultSectionSize + 4
        if table.maximumHeight != height:
            table.minimumHeight = table.maximumHeight = height

    def _on_cell(self, row: int, _column: int) -> None:
        if 0 <= row < len(self._rois):
            self.centre_on(self._rois[row])

    def centre_on(self, roi: Any) -> None:
        """Move every slice view, and what the 3D views turn round, to the middle of a box."""
        centre = [float(value) for value in self.study.centre_on(roi)]
        slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *centre, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
        for index in range(self.scene.GetNumberOfNodesByClass("vtkMRMLCameraNode")):
            camera = self.scene.GetNthNodeByClass(index, "vtkMRMLCameraNode")
            shift = [new - old for new, old in zip(centre, camera.GetFocalPoint(), strict=True)]
            camera.SetPosition([at + by for at, by in zip(camera.GetPosition(), shift, strict=True)])
            camera.SetFocalPoint(centre)


def _comparison(findings: Any) -> str:
    """What has changed since an earlier study; empty where there is none."""
    if findings is None or findings.comparison is None:
        return ""
    from MTMed3DCore.exports.report_content import comparison_sentence

    return comparison_sentence(findings)
