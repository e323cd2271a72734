"""Pictures of single cases for the report: where model and truth disagree most, both drawn as contours."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.datalist.case import Case
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.evaluation.scoring import truth_labels
from MTMed3DCore.exports import read_findings
from MTMed3DCore.findings import REGION_LABELS
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.training.examples import read_images

TRUTH_COLOR, FOUND_COLOR = "#35d07f", "#ff9900"
_PANELS = (("flair", "whole_tumour"), ("t1ce", "tumour_core"), ("t1ce", "enhancing"))
_MARGIN_MM = 6.0
_SHOWN_PERCENTILE = 99.7
_BACKGROUND, _INK = "#101418", "#f2f4f6"


def draw_case(case: Case, analysis: Path) -> bytes:
    """A PNG of the axial slice with the most voxels in which a region is wrong, or the most tumour where none is.

    Args:
        case: with a label map.
        analysis: folder with the findings.

    Raises:
        InputRefused: a file of either that cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    findings = read_findings(analysis)
    study = read_images(case)
    upright = _Upright(findings.grid)
    found, truth = upright.array(findings.labels), upright.array(truth_labels(case, findings.grid))
    level = _level(found, truth)
    figure = Figure(figsize=(10.5, 4.3), facecolor=_BACKGROUND)
    FigureCanvasAgg(figure)
    shown = _shown(upright.array(study.sequences["t1ce"].array)[:, :, level], upright.spacing)
    for number, (sequence, region) in enumerate(_PANELS):
        axes = figure.add_axes((0.01 + 0.33 * number, 0.08, 0.32, 0.83))
        image = upright.array(study.sequences[sequence].array)[:, :, level]
        high = float(np.percentile(image[image > image.min()], _SHOWN_PERCENTILE)) if np.ptp(image) else 1.0
        axes.imshow(image.T, cmap="gray", vmin=float(image.min()), vmax=high, origin="lower")
        for labels, color, style in ((truth, TRUTH_COLOR, "solid"), (found, FOUND_COLOR, "dashed")):
            mask = np.isin(labels[:, :, level], REGION_LABELS[region])
            if mask.any():
                axes.contour(mask.T.astype(float), levels=[0.5], colors=[color], linewidths=1.3, linestyles=style)
        axes.set_aspect(upright.spacing[1] / upright.spacing[0])
        axes.set_xlim(shown.upper[0], shown.lower[0])  # radiological display: the patient's right is on the left
        axes.set_ylim(shown.lower[1], shown.upper[1])
        axes.set_axis_off()
        axes.set_title(f"{sequence.upper()}, {region.replace('_', ' ')}", color=_INK, fontsize=9)
    lines = [Line2D([], [], color=TRUTH_COLOR), Line2D([], [], color=FOUND_COLOR, linestyle="dashed")]
    figure.legend(lines, ["truth", "model"], loc="lower center", ncols=2, frameon=False, labelcolor=_INK, fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, facecolor=_BACKGROUND)
    return stream.getvalue()


class _Upright:
    """Arrays of a grid with their axes turned to the nearest R, A, S."""

    def __init__(self, grid: Grid) -> None:
        from nibabel.orientations import io_orientation

        self._orientation = np.asarray(io_orientation(grid.affine))
        self.spacing = np.empty(3)
        self.spacing[self._orientation[:, 0].astype(int)] = grid.spacing

    def array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        from nibabel.orientations import apply_orientation

        return np.asarray(apply_orientation(array, self._orientation))


def _level(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> int:
    wrong = np.zeros(found.shape[2])
    for region in EVALUATED:
        a, b = (np.isin(labels, REGION_LABELS[region]) for labels in (found, truth))
        wrong += (a ^ b).sum(axis=(0, 1))
    if wrong.any():
        return int(wrong.argmax())
    tumour = (truth > 0).sum(axis=(0, 1))
    return int(tumour.argmax()) if tumour.any() else found.shape[2] // 2


def _shown(image: npt.NDArray[Any], spacing: npt.NDArray[np.floating]) -> VoxelBox:
    """The head in a slice, with a margin."""
    head = (image > image.min() + 0.05 * np.ptp(image))[:, :, None]
    box = VoxelBox.around(head) if head.any() else VoxelBox((0, 0, 0), head.shape)
    margin = _MARGIN_MM / spacing
    return VoxelBox(tuple(box.lower - margin), tuple(box.upper + margin))
