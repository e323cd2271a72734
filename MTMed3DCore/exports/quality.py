"""``quality.png``: whether the brain mask fits, and whether each sequence lies on the T1ce.

The first row shows the T1ce as it came in with the outline of the mask. The others show the T1ce and one registered
sequence on the working grid, square by square in turn: a fold or a ventricle that breaks at the edge of a square says
that the two do not lie on each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.exports.preview import BACKGROUND, INK, PLANES, Anatomical, Plane, grey_window, write_text
from MTMed3DCore.findings import RESEARCH_USE
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.preparation.words import (
    ALARM,
    CALM,
    DOUBT,
    mask_attention,
    mask_in_words,
    registration_attention,
    registration_in_words,
)
from MTMed3DCore.sequences import NAMES, SEQUENCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from MTMed3DCore.preparation import PreparedStudy
    from MTMed3DCore.study import Study

COLORS = {CALM: INK, DOUBT: "#ffb454", ALARM: "#ff6b6b"}
"""Of a row's words, by the attention that it needs."""
SQUARE_MM = 15.0
_OUTLINE = "#57d9a3"
_ROW, _HEAD, _FOOT, _WIDTH = 3.3, 0.55, 0.4, 10.5
"""Inches."""

Array = npt.NDArray[Any]


def write_quality(study: Study, prepared: PreparedStudy, path: Path) -> None:
    """Draw the picture.

    Args:
        study: as it was read.
        prepared: what `preparation.prepare` made of it, its record included; the intensities may be normalised.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    record = prepared.record
    if record is None or record.brain is None:
        raise ValueError("a study without a record of its preparation has no quality to show")
    rows = [("t1ce", f"T1ce, brain mask: {mask_in_words(record)}", mask_attention(record))]
    for each in record.registrations:
        words = f"{NAMES[each.sequence]} on T1ce: {registration_in_words(each)}"
        rows.append((each.sequence, words, registration_attention(each)))
    height = _HEAD + _ROW * len(rows) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    write_text(figure, 0.02, 1 - 0.3 / height, study.id, size=15, color=INK, va="center", weight="bold")
    images = dict(zip(SEQUENCES, prepared.image, strict=True))
    native, working = Anatomical(study.grid), Anatomical(prepared.grid)
    for number, (name, words, attention) in enumerate(rows):
        top = height - _HEAD - _ROW * number
        write_text(figure, 0.02, (top - 0.15) / height, words, size=11, color=COLORS[attention], va="center")
        for column, plane in enumerate(PLANES):
            axes = figure.add_axes((0.02 + 0.325 * column, (top - 3.2) / height, 0.31, 2.9 / height))
            across = (plane.horizontal, plane.vertical)
            if name == "t1ce":
                image, brain = native.array(study.sequences["t1ce"].array), native.array(record.brain)
                spacing = native.spacing()[list(across)]
                cut = _middle(brain)[plane.fixed]
                _show(axes, np.take(image, cut, plane.fixed).T, spacing, grey_window(image))
                _outline(axes, np.take(brain, cut, plane.fixed).T, spacing)
            else:
                brain, spacing = working.array(prepared.brain), working.spacing()[list(across)]
                cut = _middle(brain)[plane.fixed]
                first, second = (_section(working.array(images[each]), cut, plane) for each in ("t1ce", name))
                inside = np.take(brain, cut, plane.fixed).T
                _show(axes, np.where(inside, _in_turn(first, second, spacing), 0.0), spacing, (0.0, 1.0))
    write_text(figure, 0.5, 0.2 / height, RESEARCH_USE, size=9, color=INK, va="center", ha="center")
    figure.savefig(path, dpi=100, facecolor=BACKGROUND, metadata={"Description": RESEARCH_USE})


def _middle(brain: Array) -> Array:
    """Indices of the middle of the mask."""
    box = VoxelBox.around(brain)
    return np.floor((np.array(box.lower) + box.upper) / 2).astype(int)


def _section(image: Array, cut: int, plane: Plane) -> Array:
    """One plane of an image as grey values from 0 to 1."""
    low, high = grey_window(image)
    return np.clip((np.take(image, cut, plane.fixed).T - low) / (high - low), 0.0, 1.0)


def _in_turn(first: Array, second: Array, spacing: Array) -> Array:
    """Two sections as the squares of a chessboard; `spacing` in mm along columns and rows."""
    rows, columns = np.indices(first.shape)
    squares = (rows * spacing[1] // SQUARE_MM + columns * spacing[0] // SQUARE_MM) % 2 == 0
    return np.where(squares, first, second)


def _show(axes: Axes, section: Array, spacing: Array, window: tuple[float, float]) -> None:
    width, height = section.shape[1] * spacing[0], section.shape[0] * spacing[1]
    axes.imshow(section, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", extent=(0, width, 0, height))
    axes.set_xlim(width, 0)  # right and anterior are shown on the left
    axes.set_aspect("equal")
    axes.set_facecolor("black")
    axes.set(xticks=[], yticks=[])


def _outline(axes: Axes, mask: Array, spacing: Array) -> None:
    if mask.any() and not mask.all():
        x, y = ((np.arange(size) + 0.5) * step for size, step in zip(mask.shape[::-1], spacing, strict=True))
        axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[_OUTLINE], linewidths=1.0)
