"""A series: the frames that make up one volume, with what the files say about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.recognition.header import SeriesHeader
from MTMed3DCore.sequences import Verdict, identify

if TYPE_CHECKING:
    from MTMed3DCore.dicom.stacking import Stack
    from MTMed3DCore.volume import Volume

FEWEST_SLICES = 8
"""A series of fewer slices is no examination of the whole head."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice, where it lies and where its pixels are.

    Args:
        path: the file.
        index: number of the frame in a multi-frame file, None in a file of one slice.
        position: centre of the first pixel, LPS mm, shape (3,).
        orientation: directions of a row and of a column in LPS, shape (2, 3).
        spacing: distance between rows and between columns in mm.
        shape: rows and columns.
        instance: the scanner's number of the image.
        sop_uid: DICOM's identifier of the file's object.
        slope, intercept: from stored to real values.
    """

    path: Path
    index: int | None
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    shape: tuple[int, int]
    instance: int = 0
    sop_uid: str = ""
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Direction across the slice, LPS, right-handed to rows and columns."""
        return np.cross(self.orientation[0], self.orientation[1])

    @property
    def label(self) -> str:
        """What a person can look up: file, and frame where there are several."""
        return self.path.name if self.index is None else f"{self.path.name} frame {self.index + 1}"


@dataclass(frozen=True, eq=False)
class Series:
    """Frames of one series that differ only in position.

    A DICOM series with several echoes, orientations or kinds of image is several of these, told apart by `part`.

    Args:
        header: what the files say about the acquisition.
        frames: in the order of the files.
        part: letter of this part of a divided series, or empty.
        copies: number of files that were exact copies of others and left out.
        problem: why these files make no volume, known already while reading headers; or empty.
    """

    header: SeriesHeader
    frames: tuple[Frame, ...]
    part: str = ""
    copies: int = 0
    problem: str = ""
    files: tuple[Path, ...] = field(default=())

    @property
    def name(self) -> str:
        """The scanner's number and the description, for messages: ``5 t1_mprage``."""
        number = "" if self.header.number is None else f"{self.header.number}{self.part} "
        return f"{number}{self.header.description or self.header.protocol or 'without description'}"

    @property
    def key(self) -> str:
        """How a user names this series: the scanner's number and the part, for example ``5`` or ``5b``."""
        return f"{'' if self.header.number is None else self.header.number}{self.part}"

    @cached_property
    def verdict(self) -> Verdict:
        """What the series is taken for."""
        verdict = identify(header=self.header)
        if verdict.aside:
            return verdict
        if self.problem:
            return replace(verdict, sequence=None, candidates=(), aside=self.problem)
        if 0 < len(self.frames) < FEWEST_SLICES:
            return replace(verdict, sequence=None, candidates=(), aside=f"only {len(self.frames)} slices")
        return verdict

    @cached_property
    def stack(self) -> Stack:
        """The geometry.

        Raises:
            InputRefused: see `stacking.stack`.
        """
        from MTMed3DCore.dicom.stacking import stack

        return stack(self.frames, self.name)

    @property
    def fault(self) -> InputRefused | None:
        """Why the geometry cannot be used, or None."""
        try:
            _ = self.stack
        except InputRefused as refusal:
            return refusal
        return None

    @property
    def plane(self) -> str:
        """``axial``, ``coronal`` or ``sagittal``, whichever the slices are nearest to."""
        return ("sagittal", "coronal", "axial")[int(np.abs(self.frames[0].normal).argmax())] if self.frames else ""

    def read(self) -> Volume:
        """The voxels as float32 on their grid.

        Raises:
            InputRefused: the geometry cannot be used, or the pixels cannot be decoded.
        """
        from MTMed3DCore.dicom.pixels import read_volume

        return read_volume(self)
