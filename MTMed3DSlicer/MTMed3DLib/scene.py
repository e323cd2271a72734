"""An analysis in the MRML scene: regions, boxes, grade and table of one study, and what a reader made of them.

Only nodes that carry our tags are ever touched, and what a reader changed survives every further analysis. All nodes
follow the parent transform of T1ce, in whose frame the analysis was made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk

from MTMed3DLib import regions
from MTMed3DLib.attributes import (
    BOX,
    EDITED,
    FINDINGS,
    GRADE,
    INPUT,
    KEPT,
    LESION,
    NEWER,
    PROBABILITY,
    PROPOSED,
    REJECTED,
    RESULT,
    SCORE,
    SEGMENTATION,
    STATE,
    STUDY,
    STUDY_ATTRIBUTE,
    T1CE,
    TABLE,
    THRESHOLD,
    WRITTEN,
)
from MTMed3DLib.brain import brain_node, show_mask
from MTMed3DLib.hierarchy import file_under_folder, folder_of
from MTMed3DLib.inputs import SEQUENCES
from MTMed3DLib.nodes import (
    Array,
    box_of,
    grid_of,
    mark_decided,
    place_roi,
    remove_node,
    same_place,
    style_box,
    tag,
    tagged,
    text_of_box,
    was_moved,
)
from MTMed3DLib.summary import grade_in_words, lesion_rows, lesion_table

if TYPE_CHECKING:
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.geometry import Grid, WorldBox


class StudyScene:
    """Our nodes of one study.

    Args:
        scene: vtkMRMLScene.
        study_id: name of the study, unique in the scene.
    """

    def __init__(self, scene: Any, study_id: str) -> None:
        self.scene = scene
        self.study_id = study_id

    @classmethod
    def find(cls, scene: Any) -> list[StudyScene]:
        """Every study of ours in a scene, also after it was loaded from a file."""
        return [cls(scene, study) for study in dict.fromkeys(node.GetAttribute(STUDY) for node in tagged(scene))]

    # What there is

    def _node(self, role: str) -> Any:
        return next(tagged(self.scene, self.study_id, role), None)

    @property
    def segmentation(self) -> Any:
        """vtkMRMLSegmentationNode of the regions, or None."""
        return self._node(SEGMENTATION)

    @property
    def newer(self) -> Any:
        """vtkMRMLSegmentationNode of a later run beside regions that a reader edited, or None."""
        return self._node(NEWER)

    @property
    def table(self) -> Any:
        """vtkMRMLTableNode of the lesions, or None."""
        return self._node(TABLE)

    @property
    def grade_text(self) -> Any:
        """vtkMRMLTextNode with the grade in words, or None."""
        return self._node(GRADE)

    @property
    def brain(self) -> Any:
        """vtkMRMLSegmentationNode of the brain mask that the analysis used, or None."""
        return brain_node(self.scene, self.study_id)

    @property
    def t1ce(self) -> Any:
        """The volume whose grid the regions lie on, or None where it was deleted."""
        return None if self.segmentation is None else self.segmentation.GetNodeReference(T1CE)

    def volumes(self) -> dict[str, Any]:
        """The four sequences that were analysed, by name; None for one that was deleted."""
        node = self.segmentation
        return {name: None if node is None else node.GetNodeReference(f"{INPUT}{name}") for name in SEQUENCES}

    @property
    def findings_document(self) -> dict[str, Any] | None:
        """The latest analysis as ``findings.json`` held it; None before the first."""
        node = self._node(FINDINGS)
        document: dict[str, Any] | None = json.loads(node.GetText()) if node is not None else None
        return document

    @property
    def findings(self) -> Findings | None:
        """The latest analysis as it was written, without voxels; None before the first."""
        document = self.findings_document
        if document is None:
            return None
        from MTMed3DCore.exports.json_file import document_findings, document_grid

        return document_findings(document, np.zeros(document_grid(document).shape, np.uint8))

    def boxes(self) -> list[Any]:
        """Markups ROI nodes of the lesions, rejected ones included, in the order of their numbers."""
        return sorted(tagged(self.scene, self.study_id, BOX), key=lambda roi: int(roi.GetAttribute(LESION)))

    @property
    def grid(self) -> Grid:
        """The grid of T1ce in the frame of the regions, which is T1ce's own unless its transform was changed since.

        Where T1ce was deleted, the grid that the regions were written on.

        Raises:
            ValueError: the study has no regions.
        """
        if self.segmentation is None:
            raise ValueError(f"The study {self.study_id} has no regions in the scene. Analyse it again.")
        return regions.grid_of_regions(self.segmentation, self.t1ce)

    def box(self, roi: Any) -> WorldBox:
        """The box of a ROI node in the frame of the regions, where `grid` lies."""
        return box_of(roi, self.segmentation)

    def labels(self) -> Array:
        """The regions as they are now: uint8 (X, Y, Z) on the T1ce grid, 1, 2, 4; inner regions win.

        Raises:
            ValueError: the study has no regions.
        """
        return regions.read_labels(self.segmentation, self.grid)

    def volumes_ml(self, labels: Array | None = None) -> dict[str, float]:
        """Millilitres of each region as the segmentation is now, or as `labels` has it where it was just read."""
        from MTMed3DCore.findings import volumes_ml

        return volumes_ml(self.labels() if labels is None else labels, self.grid)

    @property
    def regions_edited(self) -> bool:
        """Whether a reader changed any voxel, or added or removed a segment."""
        node = self.segmentation
        return node is not None and node.GetAttribute(WRITTEN) != regions.digest(node, self.t1ce)

    # Writing

    def show(
        self,
        folder: Path,
        t1ce: Any,
        inputs: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
    ) -> list[str]:
        """Bring the result of an analysis into the scene.

        Args:
            folder: output folder of the analysis, made in the frame of `t1ce`.
            t1ce: volume node.
            inputs: volume nodes of all four sequences, which an export needs.
            score_threshold: score from which on the model reports a box, where it is known.

        Returns:
            What was kept of a reader's work instead of being replaced, in words.
        """
        from MTMed3DCore.exports.json_file import document_findings, document_grid, read_document

        document = read_document(folder / RESULT)
        grid, own = document_grid(document), grid_of(t1ce)
        if not grid.same_as(own, tolerance_mm=float(own.spacing.min()) / 4):
            text = f"The result in {folder} lies on a grid of {grid.shape} voxels that is not that of {t1ce.GetName()}"
            raise ValueError(f"{text}, {own.shape}: the volume was changed or replaced since. Analyse it again.")
        findings = document_findings(document, np.zeros(grid.shape, np.uint8))
        kept: list[str] = []
        with self.batch():
            kept += regions.show_regions(self, folder, t1ce)
            kept += show_mask(self.scene, self.study_id, folder, t1ce)
            self.link_volumes({"t1ce": t1ce, **(inputs or {})})
            kept += self._show_boxes(findings, t1ce)
            self.keep_findings(document)
            self.text_node(FINDINGS).SetAttribute(THRESHOLD, None if score_threshold is None else str(score_threshold))
            self.write_grade()
            self.write_table()
            file_under_folder(self.scene, self.study_id)
        return kept

    def link_volumes(self, nodes: Mapping[str, Any]) -> None:
        """Remember which volumes were analysed, and let a further analysis of this T1ce be one of this study."""
        for name, node in nodes.items():
            self.segmentation.SetNodeReferenceID(f"{INPUT}{name}", None if node is None else node.GetID())
        if nodes.get("t1ce") is not None:
            nodes["t1ce"].SetAttribute(STUDY_ATTRIBUTE, self.study_id)

    def keep_findings(self, document: Mapping[str, Any]) -> None:
        """Write down the latest analysis as ``findings.json`` holds it."""
        self.text_node(FINDINGS).SetText(json.dumps(document))

    @property
    def lowest_confidence(self) -> float:
        """The confidence from which on the boxes that the model reports are shown: all of them, and no others.

        The model's own threshold; where it is not known, or a region that the detector did not see scores less, the
        lowest score of the boxes, down to whole hundredths.
        """
        node = self._node(FINDINGS)
        threshold = None if node is None else node.GetAttribute(THRESHOLD)
        scores = [score for roi in self.boxes() if (score := self.score(roi)) is not None]
        known = [] if threshold is None else [float(threshold)]
        return math.floor(min([*known, *scores], default=0.0) * 100) / 100

    def mark_regions_as_written(self) -> None:
        """What the regions are now is the model's."""
        self.segmentation.SetAttribute(WRITTEN, regions.digest(self.segmentation, self.t1ce))

    def _show_boxes(self, findings: Findings, t1ce: Any) -> list[str]:
        kept = []
        for roi in self.boxes():
            if self.state(roi) == PROPOSED:
                remove_node(roi)
            else:
                self.settle(roi)
                kept.append(roi)
        numbers = {int(roi.GetAttribute(LESION)) for roi in kept}
        seen_again = 0
        for lesion in findings.lesions:
            if any(same_place(box_of(roi, t1ce), lesion.box) for roi in kept):
                seen_again += 1
                continue
            number = lesion.id if lesion.id not in numbers else max(numbers) + 1
            numbers.add(number)
            roi = self.add_box(lesion.box, number, lesion.score, PROPOSED, t1ce)
            if lesion.probability is not None:
                roi.SetAttribute(PROBABILITY, f"{lesion.probability:.6f}")
        if not kept:
            return []
        again = f", {seen_again} of them found again" if seen_again else ""
        return [f"{len(kept)} boxes of the reader were kept{again}."]

    def add_box(self, box: WorldBox, number: int, score: float | None, state: str, beside: Any = None) -> Any:
        """A new ROI node for a lesion, handles off.

        Args:
            box: in the frame of `beside`.
            number: of the lesion.
            score: None where a reader drew it.
            state: one of the five.
            beside: node whose parent transform it follows; None takes the regions.
        """
        name = f"Lesion {number} ({score:.2f})" if score is not None else f"Lesion {number} (reader)"
        roi = self.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
        tag(roi, self.study_id, BOX)
        roi.SetAttribute(LESION, str(number))
        roi.SetAttribute(STATE, state)
        if score is not None:
            roi.SetAttribute(SCORE, f"{score:.6f}")
        place_roi(roi, box)
        roi.SetAttribute(WRITTEN, text_of_box(box_of(roi)))
        frame = beside if beside is not None else self.segmentation
        if frame is not None:
            roi.SetAndObserveTransformNodeID(frame.GetTransformNodeID())
        style_box(roi)
        file_under_folder(self.scene, self.study_id)
        return roi

    def state(self, roi: Any) -> str:
        """What a reader made of a box; a box that was moved counts as edited, however it was moved."""
        state = str(roi.GetAttribute(STATE) or PROPOSED)
        return EDITED if state in (PROPOSED, KEPT) and was_moved(roi) else state

    def settle(self, roi: Any) -> None:
        """Write down that a box is edited, with the time, where it was moved and nobody has noted it yet."""
        if self.state(roi) == EDITED and roi.GetAttribute(STATE) != EDITED:
            roi.SetAttribute(STATE, EDITED)
            mark_decided(roi)

    @staticmethod
    def score(roi: Any) -> float | None:
        """Confidence of the model, 0 to 1; None for a box that a reader added."""
        value = roi.GetAttribute(SCORE)
        return None if value is None else float(value)

    def set_confidence(self, threshold: float) -> int:
        """Show the proposed boxes from this score on, and hide the others; what a reader touched stays as it is.

        Returns:
            How many boxes are shown.
        """
        shown = 0
        with self.batch():
            for roi in self.boxes():
                state, score = self.state(roi), self.score(roi)
                visible = state != REJECTED and (state != PROPOSED or score is None or score >= threshold)
                shown += visible
                if bool(roi.GetDisplayVisibility()) != visible:
                    roi.SetDisplayVisibility(visible)
        return shown

    def centre_on(self, roi: Any) -> Array:
        """Middle of a box in world RAS mm, where the views should go."""
        matrix = vtk.vtkMatrix4x4()
        if roi.GetParentTransformNode() is not None:
            roi.GetParentTransformNode().GetMatrixTransformToWorld(matrix)
        middle = matrix.MultiplyPoint((*box_of(roi).center, 1.0))
        return np.array(middle[:3])

    def rows(self, labels: Array | None = None) -> list[dict[str, str]]:
        """One row of texts a lesion; see `summary.lesion_rows`."""
        return lesion_rows(self, labels)

    def write_table(self) -> None:
        """Bring the table up to date."""
        node = self.table
        if node is None:
            node = self.scene.AddNewNodeByClass("vtkMRMLTableNode", f"{self.study_id} lesions")
            tag(node, self.study_id, TABLE)
        node.SetAndObserveTable(lesion_table(self))

    def write_grade(self) -> None:
        """Bring the grade in words up to date."""
        self.text_node(GRADE).SetText(grade_in_words(self))

    def remove(self) -> None:
        """Take every node of this study that is ours out of the scene, edits included."""
        with self.batch():
            for node in list(tagged(self.scene, self.study_id)):
                remove_node(node)
            hierarchy, folder = folder_of(self.scene, self.study_id)
            if folder:
                hierarchy.RemoveItem(folder)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One redraw for many changes."""
        self.scene.StartState(slicer.vtkMRMLScene.BatchProcessState)
        try:
            yield
        finally:
            self.scene.EndState(slicer.vtkMRMLScene.BatchProcessState)

    def text_node(self, role: str) -> Any:
        """The text node in a role, made where there is none."""
        node = self._node(role)
        if node is None:
            node = self.scene.AddNewNodeByClass("vtkMRMLTextNode", f"{self.study_id} {role}")
            tag(node, self.study_id, role)
            node.SetHideFromEditors(role == FINDINGS)
        return node
