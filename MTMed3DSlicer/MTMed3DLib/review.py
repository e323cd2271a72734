"""What a reader decides on a study; every decision is marked as his, with its time, on the nodes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from MTMed3DLib import regions
from MTMed3DLib.attributes import (
    ADDED,
    COMMENT,
    DIFFICULTY,
    EDITED,
    GRADE_WHEN,
    KEPT,
    LESION,
    PROPOSED,
    READER_GRADE,
    REJECTED,
    STATE,
    VERDICT,
    WHEN,
)
from MTMed3DLib.nodes import Array, mark_decided, place_roi, to_frame_of
from MTMed3DLib.scene import StudyScene

if TYPE_CHECKING:
    from MTMed3DCore.geometry import VoxelBox

VERDICTS = ("", "accept", "accept after correction", "reject")
DIFFICULTIES = ("", "easy", "medium", "hard")
GRADES = ("HGG", "LGG")
NEW_BOX_MM = 30.0


class Review:
    """The reader's side of a study.

    Args:
        study: in the scene, shown at least once.
    """

    def __init__(self, study: StudyScene) -> None:
        self.study = study

    # Boxes

    def state(self, roi: Any) -> str:
        """``proposed``, ``kept``, ``rejected``, ``edited`` or ``added``."""
        return self.study.state(roi)

    def keep(self, roi: Any) -> None:
        """The reader agrees with a box; an edited or added one stays so."""
        if roi.GetAttribute(STATE) in (PROPOSED, REJECTED, None):
            roi.SetAttribute(STATE, KEPT)
        mark_decided(roi)
        roi.SetDisplayVisibility(True)
        self.study.write_table()

    def reject(self, roi: Any) -> None:
        """The reader says that this is no tumour: the box is hidden, and kept out of every export."""
        roi.SetAttribute(STATE, REJECTED)
        mark_decided(roi)
        self.finish_edit()
        roi.SetDisplayVisibility(False)

    def edit(self, roi: Any) -> None:
        """Let the reader drag a box; the handles of every other box are off."""
        for other in self.study.boxes():
            other.GetDisplayNode().SetHandlesInteractive(other.GetID() == roi.GetID())
        roi.SetDisplayVisibility(True)

    def finish_edit(self) -> None:
        """Switch all handles off, and mark what was moved."""
        for roi in self.study.boxes():
            roi.GetDisplayNode().SetHandlesInteractive(False)
            self.study.settle(roi)
        self.study.write_table()

    @property
    def edited_now(self) -> Any:
        """The box whose handles are on, or None."""
        return next((roi for roi in self.study.boxes() if roi.GetDisplayNode().GetHandlesInteractive()), None)

    def add_box(self, centre: Any) -> Any:
        """A box of 3 cm round a point in world RAS mm, along the axes of T1ce, handles on."""
        from MTMed3DCore.geometry import WorldBox

        to_world = to_frame_of(self.study.segmentation, None)
        middle = np.linalg.inv(to_world) @ [*centre, 1.0]
        box = WorldBox(middle[:3], np.full(3, NEW_BOX_MM), self.study.grid.axes)
        numbers = [int(roi.GetAttribute(LESION)) for roi in self.study.boxes()]
        roi = self.study.add_box(box, max(numbers, default=0) + 1, None, ADDED)
        mark_decided(roi)
        self.edit(roi)
        self.study.write_table()
        return roi

    # Boxes and regions

    def fit_box_to_region(self, roi: Any) -> bool:
        """Make a box as tight as the tumour regions that it touches; False where it touches none."""
        touched = self._touched(roi)
        if not touched.any():
            return False
        from MTMed3DCore.geometry import VoxelBox

        roi.SetAndObserveTransformNodeID(self.study.segmentation.GetTransformNodeID())
        place_roi(roi, VoxelBox.around(touched).to_world(self.study.grid))
        if roi.GetAttribute(STATE) != ADDED:
            roi.SetAttribute(STATE, EDITED)
        mark_decided(roi)
        self.study.write_table()
        return True

    def region_from_box(self, roi: Any) -> float:
        """Take the tumour regions that a box touches out of the segmentation where they lie outside of it.

        Returns:
            Millilitres taken away.
        """
        outside = self._touched(roi)
        outside[self._voxels(roi).slices(self.study.grid.shape)] = False
        return self._erase(outside)

    def rejected_ml(self) -> float:
        """Millilitres of the regions that lie in rejected boxes alone."""
        return float(self._rejected_alone().sum()) * self.study.grid.voxel_volume_ml

    def erase_rejected(self) -> float:
        """Take the regions that lie in rejected boxes alone out of the segmentation; returns millilitres."""
        return self._erase(self._rejected_alone())

    def _rejected_alone(self) -> Array:
        """Voxels (X, Y, Z) of the tumours that a rejected box touches and no other box does."""
        doomed, spared = np.zeros(self.study.grid.shape, bool), set()
        rejected = [roi for roi in self.study.boxes() if self.state(roi) == REJECTED]
        if not rejected:
            return doomed
        parts, where = self._parts()
        for roi in self.study.boxes():
            if self.state(roi) != REJECTED:
                spared |= self._inside(roi, parts, where)
        touched = set().union(*(self._inside(roi, parts, where) for roi in rejected))
        doomed[where] = np.isin(parts, sorted(touched - spared))
        return doomed

    def _touched(self, roi: Any) -> Array:
        """Voxels (X, Y, Z) of the connected tumours that have voxels in a box."""
        mask = np.zeros(self.study.grid.shape, bool)
        parts, where = self._parts()
        mask[where] = np.isin(parts, sorted(self._inside(roi, parts, where)))
        return mask

    def _parts(self) -> tuple[Array, tuple[slice, ...]]:
        """Numbers of the connected tumours in the part of the grid that holds any, and that part."""
        from scipy import ndimage

        from MTMed3DCore.geometry import VoxelBox

        tumour = self.study.labels() > 0
        shape = (tumour.shape[0], tumour.shape[1], tumour.shape[2])
        where = VoxelBox.around(tumour).slices(shape) if tumour.any() else (slice(0, 0),) * 3
        return ndimage.label(tumour[where], structure=np.ones((3, 3, 3)))[0], where

    def _inside(self, roi: Any, parts: Array, where: tuple[slice, ...]) -> set[int]:
        """Numbers of the connected tumours with voxels in a box."""
        box = self._voxels(roi).slices(self.study.grid.shape)
        within = tuple(
            slice(max(mine.start - part.start, 0), max(mine.stop - part.start, 0))
            for mine, part in zip(box, where, strict=True)
        )
        return {int(number) for number in np.unique(parts[within]) if number}

    def _voxels(self, roi: Any) -> VoxelBox:
        return self.study.box(roi).to_voxel(self.study.grid)

    def _erase(self, mask: Any) -> float:
        labels = self.study.labels()
        volume = float((labels[mask] > 0).sum()) * self.study.grid.voxel_volume_ml
        if volume:
            labels[mask] = 0
            self.write_labels(labels)
        return volume

    def write_labels(self, labels: Any) -> None:
        """Replace the voxels of every region: uint8 (X, Y, Z) on the T1ce grid, 1, 2, 4."""
        with self.study.batch():
            regions.write_labels(self.study.segmentation, self.study.grid, labels)
        mark_decided(self.study.segmentation)
        self.study.write_table()

    # The study as a whole

    @property
    def grade(self) -> str | None:
        """The reader's grade, or None where he leaves it to the model."""
        return self.study.grade_text.GetAttribute(READER_GRADE) or None

    def set_grade(self, grade: str) -> None:
        """Override the grade.

        Raises:
            ValueError: neither HGG nor LGG.
        """
        if grade not in GRADES:
            raise ValueError(f"The grade is {grade!r}; it is one of {', '.join(GRADES)}.")
        self._set(READER_GRADE, grade)
        self.study.grade_text.SetAttribute(GRADE_WHEN, self.decided_at(self.study.grade_text))
        self.study.write_grade()

    def clear_grade(self) -> None:
        """Leave the grade to the model again."""
        self._set(READER_GRADE, "")
        self.study.grade_text.RemoveAttribute(GRADE_WHEN)
        self.study.write_grade()

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        return self.study.grade_text.GetAttribute(VERDICT) or ""

    @verdict.setter
    def verdict(self, value: str) -> None:
        self._set(VERDICT, _one_of("verdict", value, VERDICTS))

    @property
    def difficulty(self) -> str:
        """One of `DIFFICULTIES`."""
        return self.study.grade_text.GetAttribute(DIFFICULTY) or ""

    @difficulty.setter
    def difficulty(self, value: str) -> None:
        self._set(DIFFICULTY, _one_of("difficulty", value, DIFFICULTIES))

    @property
    def comment(self) -> str:
        """Free text."""
        return self.study.grade_text.GetAttribute(COMMENT) or ""

    @comment.setter
    def comment(self, value: str) -> None:
        self._set(COMMENT, value)

    @property
    def touched(self) -> bool:
        """Whether the reader decided anything at all."""
        node = self.study.grade_text
        if node is None:
            return False
        decided = any(node.GetAttribute(name) for name in (READER_GRADE, VERDICT, DIFFICULTY, COMMENT))
        return decided or self.study.regions_edited or any(self.state(r) != PROPOSED for r in self.study.boxes())

    def decided_at(self, node: Any) -> str:
        """UTC time of the last decision on a node, or an empty text."""
        return node.GetAttribute(WHEN) or ""

    def _set(self, name: str, value: str) -> None:
        node = self.study.grade_text
        if value:
            node.SetAttribute(name, value)
        else:
            node.RemoveAttribute(name)
        mark_decided(node)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"The {name} is {value!r}; it is one of {', '.join(repr(each) for each in known)}.")
    return value
