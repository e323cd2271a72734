"""``preview.png``: three planes through every lesion, in radiological display (the patient's right is on the left).

Planes are voxel planes of the T1ce grid, its axes ordered and turned to the nearest anatomical ones: nothing is
interpolated, so an oblique scan shows the slices that the scanner made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.exports.markups import lesion_name
from MTMed3DCore.exports.regions import LESION_COLOR, REGIONS
from MTMed3DCore.findings import RESEARCH_USE, Findings, Lesion
from MTMed3DCore.geometry import Grid, VoxelBox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_LESIONS = 6
"""Rows of the picture at most; further lesions are counted in words."""
SCALE_BARS_MM = (50.0, 20.0, 10.0, 5.0)
"""Lengths of the scale bar; the longest that leaves nearly half of the picture."""
CLOSE_UP, CLOSE_UP_MM = 3.0, 60.0
"""Width of the picture of the diameters: so many times the longest, and at least so many mm."""
BACKGROUND, INK, MUTED = "#101418", "#f2f4f6", "#9aa5b1"
_OVERLAY_OPACITY = 0.55
_AIR, _MARGIN = 0.1, 0.06
"""Share of the grey window below which a voxel counts as air; margin round the head as a share of its size."""


@dataclass(frozen=True)
class Plane:
    """A display plane: its horizontal, vertical and fixed axes (0 R, 1 A, 2 S) and what stands at its edges."""

    name: str
    horizontal: int
    vertical: int
    fixed: int
    edges: str  # left, right, bottom, top


PLANES = (
    Plane("axial", 0, 1, 2, "RLPA"),
    Plane("coronal", 0, 2, 1, "RLIS"),
    Plane("sagittal", 1, 2, 0, "APIS"),
)


@dataclass(frozen=True)
class Anatomical:
    """Arrays of a grid seen along the nearest anatomical axes R, A, S; views, never copies."""

    grid: Grid

    @property
    def orientation(self) -> npt.NDArray[Any]:
        from nibabel.orientations import io_orientation

        return np.asarray(io_orientation(self.grid.affine))

    def array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        from nibabel.orientations import apply_orientation

        return np.asarray(apply_orientation(array, self.orientation))

    def spacing(self) -> npt.NDArray[Any]:
        spacing = np.empty(3)
        spacing[self.orientation[:, 0].astype(int)] = self.grid.spacing
        return spacing

    def points(self, points: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """World points (N, 3), RAS mm, as voxels of the anatomical array."""
        voxels, result = self.grid.to_voxel(points), np.empty(points.shape)
        for axis, (target, direction) in enumerate(self.orientation):
            last = self.grid.shape[axis] - 1
            result[:, int(target)] = voxels[:, axis] if direction > 0 else last - voxels[:, axis]
        return result

    def box(self, box: VoxelBox) -> VoxelBox:
        lower, upper = np.empty(3), np.empty(3)
        for axis, (target, direction) in enumerate(self.orientation):
            low, high = box.lower[axis], box.upper[axis]
            size = self.grid.shape[axis]
            lower[int(target)], upper[int(target)] = (low, high) if direction > 0 else (size - high, size - low)
        return VoxelBox.from_list([*lower, *upper])


@dataclass(frozen=True, eq=False)
class KeyImages:
    """What is drawn of a study, made once for all of its lesions.

    Args:
        findings: of the study.
        view: its grid along the nearest anatomical axes; what follows is seen so.
        labels: uint8 (R, A, S).
        image: T1ce (R, A, S), or None.
        window: grey values of black and of white.
        shown: the part that is shown.
    """

    findings: Findings
    view: Anatomical
    labels: npt.NDArray[Any]
    image: npt.NDArray[Any] | None
    window: tuple[float, float]
    shown: VoxelBox

    @classmethod
    def of(cls, findings: Findings) -> KeyImages:
        """Those of a study; without the study itself in the findings only its regions."""
        view = Anatomical(findings.grid)
        labels = view.array(findings.labels)
        image = None if findings.study is None else view.array(findings.study.sequences["t1ce"].array)
        window = (0.0, 1.0) if image is None else grey_window(image)
        return cls(findings, view, labels, image, window, _shown(image, labels, window))

    def png(self, lesion: Lesion | None, dpi: int = 100) -> bytes:
        """Three planes through a lesion, and the axial slice with its two diameters, as a PNG."""
        from io import BytesIO

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        measured = lesion is not None and lesion.rano is not None
        figure = Figure(figsize=(10.5, 2.65 if measured else 3.4), facecolor=BACKGROUND)
        FigureCanvasAgg(figure)
        self.draw(figure, lesion, (0.005, 0.01, 0.99, 0.98))
        target = BytesIO()
        figure.savefig(target, format="png", dpi=dpi, facecolor=BACKGROUND, metadata={"Description": RESEARCH_USE})
        return target.getvalue()

    def draw(self, figure: Figure, lesion: Lesion | None, frame: tuple[float, float, float, float]) -> None:
        """The same in a part of a figure: left, bottom, width, height as shares of it."""
        box = None if lesion is None else self.view.box(lesion.box.to_voxel(self.findings.grid))
        center = np.array(self.labels.shape) / 2 if box is None else (np.array(box.lower) + box.upper) / 2
        index = np.clip(np.floor(center).astype(int), 0, np.array(self.labels.shape) - 1)
        rano = None if lesion is None else lesion.rano
        columns = 3 if rano is None else 4
        left, bottom, width, height = frame
        step = width / columns
        for column in range(columns):
            axes = figure.add_axes((left + column * step, bottom, 0.985 * step, height))
            plane = PLANES[column % 3]
            if column < 3:
                self.section(axes, plane, box, index)
            elif rano is not None:
                self.diameters(axes, rano)

    def section(
        self,
        axes: Axes,
        plane: Plane,
        box: VoxelBox | None,
        index: npt.NDArray[Any],
    ) -> None:
        """One plane through `index`."""
        _draw(axes, plane, self.image, self.labels, box, self.shown, index, self.view.spacing(), self.window)

    def diameters(self, axes: Axes, rano: Mapping[str, Any]) -> None:
        """The slice on which a lesion was measured, close up and without overlay, with its two diameters."""
        spacing, shape = self.view.spacing(), np.array(self.labels.shape)
        ends = self.view.points(np.array(rano["ends_ras_mm"]).reshape(4, 3))
        middle = (ends.min(axis=0) + ends.max(axis=0)) / 2
        half = max(CLOSE_UP * float(rano["longest_mm"]), CLOSE_UP_MM) / 2 / spacing
        near = VoxelBox.from_list([*np.maximum(middle - half, 0), *np.minimum(middle + half, shape)])
        at = np.clip(np.round(ends.mean(axis=0)).astype(int), 0, shape - 1)
        bare = np.zeros_like(self.labels)
        _draw(axes, PLANES[0], self.image, bare, None, near, at, spacing, self.window, "diameters")
        _draw_diameters(axes, ends, spacing)


def write_preview(findings: Findings, path: Path) -> None:
    """Draw the preview; without a study in the findings only the regions are drawn, without lesions the mid-planes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    images = KeyImages.of(findings)
    view, labels = images.view, images.labels
    rows: tuple[Lesion | None, ...] = findings.lesions[:MAX_LESIONS] or (None,)
    height = 3.5 * len(rows) + 1.3
    figure = Figure(figsize=(10.5, height), facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    for row, lesion in enumerate(rows):
        box = None if lesion is None else view.box(lesion.box.to_voxel(findings.grid))
        center = np.array(labels.shape) / 2 if box is None else (np.array(box.lower) + box.upper) / 2
        index = np.clip(np.floor(center).astype(int), 0, np.array(labels.shape) - 1)
        top = height - 0.8 - 3.5 * row
        title = "No lesion found" if lesion is None else _title(lesion)
        write_text(figure, 0.02, (top - 0.12) / height, title, size=11, color=INK, va="center")
        for column, plane in enumerate(PLANES):
            axes = figure.add_axes((0.02 + 0.325 * column, (top - 3.4) / height, 0.31, 3.1 / height))
            images.section(axes, plane, box, index)
    _frame(figure, findings, height)
    figure.savefig(path, dpi=100, facecolor=BACKGROUND, metadata={"Description": RESEARCH_USE})


def _draw(
    axes: Axes,
    plane: Plane,
    image: npt.NDArray[Any] | None,
    labels: npt.NDArray[Any],
    box: VoxelBox | None,
    shown: VoxelBox,
    index: npt.NDArray[Any],
    spacing: npt.NDArray[Any],
    window: tuple[float, float],
    name: str = "",
) -> None:
    """One plane through `index`; lengths on the axes are mm from the outer corner of the grid."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    horizontal, vertical, fixed = plane.horizontal, plane.vertical, plane.fixed
    width, height = labels.shape[horizontal] * spacing[horizontal], labels.shape[vertical] * spacing[vertical]
    where: dict[str, Any] = {"origin": "lower", "extent": (0, width, 0, height), "interpolation": "nearest"}

    def section(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array[(*fixed * (slice(None),), index[fixed])].T  # the axes left over stay in the order R, A, S

    grey = np.zeros(section(labels).shape) if image is None else section(image)
    axes.imshow(grey, cmap="gray", vmin=window[0], vmax=window[1], **where)
    axes.imshow(_overlay(section(labels)), **where)
    if box is not None:
        corner = (box.lower[horizontal] * spacing[horizontal], box.lower[vertical] * spacing[vertical])
        extent = (box.size[horizontal] * spacing[horizontal], box.size[vertical] * spacing[vertical])
        style: dict[str, Any] = {"linewidth": 1.5, "edgecolor": np.array(LESION_COLOR) / 255, "antialiased": False}
        axes.add_patch(Rectangle(corner, *extent, fill=False, **style))
    # Right and anterior are shown on the left.
    axes.set_xlim(shown.upper[horizontal] * spacing[horizontal], shown.lower[horizontal] * spacing[horizontal])
    axes.set_ylim(shown.lower[vertical] * spacing[vertical], shown.upper[vertical] * spacing[vertical])
    axes.set_aspect("equal")
    axes.set_facecolor("black")
    axes.set(xticks=[], yticks=[])
    marks = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.02, "center", "bottom"),
             (0.5, 0.98, "center", "top"), (0.02, 0.98, "left", "top"))  # fmt: skip
    halo = [withStroke(linewidth=2, foreground="black")]  # legible on a bright skull, too
    for word, (x, y, ha, va) in zip((*plane.edges, name or plane.name), marks, strict=True):
        style = {"color": INK, "fontsize": 8, "ha": ha, "va": va, "path_effects": halo}
        axes.text(x, y, word, transform=axes.transAxes, **style)
    _draw_scale_bar(axes)


def _draw_scale_bar(axes: Axes) -> None:
    """A bar of one of `SCALE_BARS_MM`; both axes are in mm."""
    from matplotlib.patheffects import withStroke

    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    width, height = abs(right - left), top - bottom
    length = next((each for each in SCALE_BARS_MM if width > 1.8 * each), SCALE_BARS_MM[-1])
    sign = 1.0 if right > left else -1.0
    end = right - sign * 0.04 * width
    start, y = end - sign * length, bottom + 0.05 * height
    halo = [withStroke(linewidth=3.5, foreground="black")]
    axes.plot([start, end], [y, y], color=INK, linewidth=2, solid_capstyle="butt", path_effects=halo)
    axes.text((start + end) / 2, y + 0.015 * height, f"{length:g} mm", color=INK, fontsize=7, ha="center",
              va="bottom", path_effects=[withStroke(linewidth=2, foreground="black")])  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _draw_diameters(axes: Axes, ends: npt.NDArray[Any], spacing: npt.NDArray[Any]) -> None:
    """Two diameters over an axial plane, the longest one solid; `ends` (4, 3) in anatomical voxels."""
    # A voxel's middle lies half a voxel inside its outer corner, from which the axes count.
    points = (ends + 0.5) * spacing
    limits = axes.get_xlim(), axes.get_ylim()
    for pair, style in ((points[:2], "-"), (points[2:], ":")):
        axes.plot(pair[:, 0], pair[:, 1], style, color=np.array(LESION_COLOR) / 255, linewidth=1.5)
    axes.set(xlim=limits[0], ylim=limits[1])


def _overlay(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    colors = np.zeros((256, 4), dtype=np.uint8)
    for region in REGIONS:
        colors[region.label] = (*region.color, round(255 * _OVERLAY_OPACITY))
    overlay: npt.NDArray[Any] = colors[labels]
    return overlay


def grey_window(image: npt.NDArray[Any]) -> tuple[float, float]:
    """Grey window from the darkest to nearly the brightest tissue, on every fourth voxel of each axis."""
    sample = image[::4, ::4, ::4]
    sample = sample[np.isfinite(sample) & (sample != 0)]
    if sample.size == 0:
        return 0.0, 1.0
    high = float(np.percentile(sample, 99.7))
    low = min(0.0, float(sample.min()))
    return low, high if high > low else low + 1.0


def _shown(image: npt.NDArray[Any] | None, labels: npt.NDArray[Any], window: tuple[float, float]) -> VoxelBox:
    """The part of the grid to show: the head with a margin, or everything where there is no head to see."""
    whole = VoxelBox((0, 0, 0), labels.shape)
    head = None if image is None else (image > window[0] + _AIR * (window[1] - window[0])) | (labels > 0)
    if head is None or not head.any():
        return whole
    tight = VoxelBox.around(head)
    margin = _MARGIN * tight.size
    lower, upper = np.maximum(tight.lower - margin, 0), np.minimum(tight.upper + margin, whole.upper)
    return VoxelBox.from_list([*lower, *upper])


def _frame(figure: Figure, findings: Findings, height: float) -> None:
    grade = findings.grade
    said = "no grade" if grade is None else f"grade {grade.label}, P(HGG) {grade.probability_hgg:.2f}"
    if grade is not None and grade.by == "reader":
        said = f"grade {grade.label}, set by the reader"
    hidden = len(findings.lesions) - MAX_LESIONS
    more = f"   {hidden} more lesions not shown" if hidden > 0 else ""
    write_text(figure, 0.02, 1 - 0.3 / height, findings.study_id, size=15, color=INK, va="center", weight="bold")
    write_text(figure, 0.98, 1 - 0.3 / height, said + more, size=12, color=INK, va="center", ha="right")
    for column, region in enumerate(REGIONS):
        x = 0.02 + 0.14 * column
        write_text(figure, x, 1 - 0.62 / height, "\u25a0", size=11, color=region.rgb, va="center")
        write_text(figure, x + 0.017, 1 - 0.62 / height, region.name, size=9, color=MUTED, va="center")
    write_text(figure, 0.5, 0.2 / height, RESEARCH_USE, size=9, color=INK, va="center", ha="center")


def _title(lesion: Lesion) -> str:
    origin = "" if lesion.origin == "detection" else "   box drawn round a region"
    volume, diameter = lesion.volumes_ml["whole_tumour"], lesion.longest_diameter_mm
    return f"{lesion_name(lesion)}   {volume:.1f} ml   {diameter:.0f} mm   at {_place(lesion.box.center)}{origin}"


def _place(point: npt.NDArray[Any]) -> str:
    """A RAS point as 3D Slicer prints it: ``R 12, P 4, S 33``."""
    letters = ("R" if point[0] >= 0 else "L", "A" if point[1] >= 0 else "P", "S" if point[2] >= 0 else "I")
    return ", ".join(f"{letter} {abs(value):.0f}" for letter, value in zip(letters, point, strict=True))


def write_text(figure: Figure, x: float, y: float, text: str, *, size: float, **style: Any) -> None:
    figure.text(x, y, text, fontsize=size, parse_math=False, **style)
