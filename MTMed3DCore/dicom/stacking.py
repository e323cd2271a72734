"""Slices to a grid: sorted along the slice normal, with missing, doubled and unevenly spaced slices named.

After DICOM PS3.3 C.7.6.2: the first pixel of a slice lies at Image Position (Patient), rows and columns run along Image
Orientation (Patient). File names and instance numbers decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from MTMed3DCore.dicom.series import Frame
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import Grid
from MTMed3DCore.notice import Notice

SAME_POSITION_MM = 0.01
"""Two slices nearer than this lie at one position."""
EVEN = 0.02
"""Share of the median distance by which a distance may differ and still count as even."""
LARGEST_STRETCH = 1.5
"""A distance up to this many times the median is bridged by resampling; beyond it a slice is missing."""
SHEAR = 1e-3
"""Largest cosine between the row of slices and the plane of a slice: a gantry tilt beyond it is refused."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """The geometry of a series.

    Args:
        grid: RAS mm; array axes are columns (along a row), rows (up a column), slices along the right-handed normal:
            the order in which dcm2niix writes NIfTI, so that both ways in give the same array.
        frames: in the order of the slices.
        positions: where each slice lies along the normal, mm, relative to the first.
        is_even: whether the slices lie on the grid as they are, so that nothing is resampled.
        notices: what was mended.
    """

    grid: Grid
    frames: tuple[Frame, ...]
    positions: npt.NDArray[np.float64]
    is_even: bool = True
    notices: tuple[Notice, ...] = ()


def stack(frames: Sequence[Frame], name: str) -> Stack:
    """Sort slices and give them a grid.

    Args:
        frames: of one orientation, size and spacing.
        name: of the series, for messages.

    Raises:
        InputRefused: ``slices-few`` (under two), ``slices-duplicate``, ``slices-missing``, ``slices-uneven`` or
            ``geometry-shear``.
    """
    if len(frames) < 2:
        raise InputRefused("slices-few", f"Series {name} has {len(frames)} slice.", "Export the whole series.")
    normal = frames[0].normal
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    places = np.array([frame.position @ normal for frame in ordered])
    _refuse_duplicates(ordered, places, name)
    _refuse_shear(ordered, normal, name)
    gaps = np.diff(places)
    middle = float(np.median(gaps))
    even = np.abs(gaps - middle) <= max(EVEN * middle, 2 * SAME_POSITION_MM)
    notices: tuple[Notice, ...] = ()
    count = len(ordered)
    if not even.all():
        _refuse_gaps(ordered, places, gaps, middle, name)
        count = round(float(places[-1] - places[0]) / middle) + 1
        text = (
            f"The slices of series {name} lie {gaps.min():.2f} to {gaps.max():.2f} mm apart; "
            f"they were resampled to {(places[-1] - places[0]) / (count - 1):.2f} mm."
        )
        notices = (Notice("slices-uneven", text),)
    affine = np.eye(4)
    first = ordered[0]
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = -first.orientation[1] * first.spacing[0]
    affine[:3, 2] = (ordered[-1].position - first.position) / (count - 1)
    rows, columns = first.shape
    affine[:3, 3] = first.position - affine[:3, 1] * (rows - 1)
    grid = Grid((columns, rows, count), LPS_TO_RAS @ affine)
    return Stack(grid, tuple(ordered), places - places[0], bool(even.all()), notices)


def _refuse_duplicates(frames: Sequence[Frame], places: npt.NDArray[np.float64], name: str) -> None:
    same = np.flatnonzero(np.diff(places) <= SAME_POSITION_MM)
    if not same.size:
        return
    pairs = "; ".join(f"{frames[i].label} and {frames[i + 1].label} at {places[i]:.1f} mm" for i in same[:3])
    more = f" and {same.size - 3} more" if same.size > 3 else ""
    raise InputRefused(
        "slices-duplicate",
        f"Series {name} holds more than one slice at the same position: {pairs}{more}.",
        "Remove the doubled files, or export each volume as a series of its own.",
    )


def _refuse_shear(frames: Sequence[Frame], normal: npt.NDArray[np.float64], name: str) -> None:
    run = frames[-1].position - frames[0].position
    steps = np.stack([frame.position - frames[0].position for frame in frames])
    aside = np.linalg.norm(steps - np.outer(steps @ normal, normal), axis=1)
    if aside.max() > max(SHEAR * np.linalg.norm(run), 0.05):
        raise InputRefused(
            "geometry-shear",
            f"The slices of series {name} are shifted by up to {aside.max():.1f} mm in their own plane.",
            "Resample it to perpendicular axes, as gantry-tilted data must be, or export the original series.",
        )


def _refuse_gaps(
    frames: Sequence[Frame],
    places: npt.NDArray[np.float64],
    gaps: npt.NDArray[np.float64],
    middle: float,
    name: str,
) -> None:
    wide = np.flatnonzero(gaps > LARGEST_STRETCH * middle)
    if wide.size:
        missing = int(sum(round(gaps[i] / middle) - 1 for i in wide))
        where = "; ".join(f"between {frames[i].label} and {frames[i + 1].label}, {gaps[i]:.1f} mm" for i in wide[:3])
        text = f"Series {name} lacks {max(missing, 1)} of its slices, which are {middle:.1f} mm apart: {where}."
        raise InputRefused("slices-missing", text, "Export or transfer the whole series again.")
    if gaps.min() < middle / LARGEST_STRETCH:
        i = int(gaps.argmin())
        text = (
            f"The slices of series {name} lie {gaps.min():.2f} to {gaps.max():.2f} mm apart "
            f"(closest: {frames[i].label} and {frames[i + 1].label})."
        )
        raise InputRefused("slices-uneven", text, "Check for slices of another series; resample it before use.")
