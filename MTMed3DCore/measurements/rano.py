"""Bidimensional measurement of enhancing tumour by the RANO criteria (Wen et al., J Clin Oncol 28, 2010).

On every axial slice as the scanner made it, the longest diameter of a connected enhancing region and the longest
diameter perpendicular to it, from outer margin to outer margin; the slice with the greatest product counts. Necrosis
that a rim encloses lies between the margins and is not taken off; what the rim does not enclose is not measured.

A lesion is measurable when both diameters reach 10 mm and it is seen on two axial slices at least. Where slices are
thicker than 5 mm, both diameters must reach twice the slice distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation
from scipy import ndimage

from MTMed3DCore.geometry import Grid, VoxelBox

LEAST_DIAMETER_MM = 10.0
THICK_SLICE_MM = 5.0
LEAST_SLICES = 2
MOST_LESIONS = 5
"""Measurable lesions that the sum of products takes in, largest first."""
Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.floating[Any]]
_TOUCHING = np.ones((3, 3), dtype=bool)


def axial_axis(grid: Grid) -> int:
    """The array axis along which axial slices are stacked: the one nearest to superior."""
    return int(np.flatnonzero(io_orientation(grid.affine)[:, 0] == 2)[0])


def bidimensional(enhancing: Mask, grid: Grid) -> dict[str, Any] | None:
    """The RANO measurement of one lesion.

    Args:
        enhancing: bool (X, Y, Z), the lesion's enhancing voxels on the T1ce grid as it came in.
        grid: that grid.

    Returns:
        ``longest_mm``, ``perpendicular_mm``, ``product_mm2``; ``slice_axis`` and ``slice_index`` (array axis and
        index); ``ends_ras_mm``: two diameters, each two points, RAS mm; ``slices``: how many axial slices show
        enhancement; ``least_mm``: what both diameters must reach; ``measurable`` and, where it is not, ``reason``.
        None where nothing enhances.
    """
    if not enhancing.any():
        return None
    axis = axial_axis(grid)
    box = VoxelBox.around(enhancing).slices(grid.shape)
    part = np.moveaxis(enhancing[box], axis, 0)
    in_plane = [a for a in range(3) if a != axis]
    steps = grid.spacing[in_plane]
    best: tuple[float, float, int, Points] | None = None
    for number, plane in enumerate(part):
        regions, count = ndimage.label(plane, structure=_TOUCHING)
        for region in range(1, count + 1):
            longest, across, ends = _diameters(np.argwhere(regions == region) * steps, steps)
            if best is None or longest * across > best[0] * best[1]:
                best = (longest, across, number, ends / steps)
    assert best is not None  # the mask is not empty
    longest, across, number, ends = best
    index = number + box[axis].start
    voxels = np.empty((4, 3))
    voxels[:, axis] = index
    voxels[:, in_plane] = ends + [box[a].start for a in in_plane]
    slices = int(part.any(axis=(1, 2)).sum())
    distance = float(grid.spacing[axis])
    least = LEAST_DIAMETER_MM if distance <= THICK_SLICE_MM else max(LEAST_DIAMETER_MM, 2 * distance)
    result = {
        "longest_mm": longest,
        "perpendicular_mm": across,
        "product_mm2": longest * across,
        "slice_axis": axis,
        "slice_index": index,
        "ends_ras_mm": grid.to_world(voxels).reshape(2, 2, 3).tolist(),
        "slices": slices,
        "least_mm": least,
        "measurable": True,
    }
    if min(longest, across) < least:
        result |= {"measurable": False, "reason": f"a diameter is below {least:.0f} mm"}
    elif slices < LEAST_SLICES:
        result |= {"measurable": False, "reason": f"seen on fewer than {LEAST_SLICES} axial slices"}
    return result


def sum_of_products(measured: Iterable[Mapping[str, Any] | None]) -> float:
    """Sum in mm2 of the products of diameters of the largest measurable lesions, `MOST_LESIONS` at most."""
    products = sorted((float(m["product_mm2"]) for m in measured if m is not None and m["measurable"]), reverse=True)
    return sum(products[:MOST_LESIONS])


def _diameters(points: Points, steps: Points) -> tuple[float, float, Points]:
    """Longest diameter, longest one perpendicular to it, and their ends.

    Args:
        points: centres (N, 2) of the pixels of one region, mm.
        steps: pixel distance along both axes, mm.

    Returns:
        Two lengths in mm and four points (4, 2): the ends of the first, then of the second.
    """
    rim = _rim(points, steps)
    offsets = rim[:, None] - rim[None]
    far = np.linalg.norm(offsets, axis=-1)
    a, b = np.unravel_index(int(far.argmax()), far.shape)
    along = offsets[b, a] / far[a, b] if far[a, b] > 0 else np.array([1.0, 0.0])
    across = np.array([-along[1], along[0]])
    # Pixels whose middles project within half a pixel of each other face each other across the first diameter.
    facing = np.abs(offsets @ along) <= _half_pixel(along, steps) + 1e-9
    width = np.where(facing, np.abs(offsets @ across), -1.0)
    c, d = np.unravel_index(int(width.argmax()), width.shape)
    turn = 1.0 if (rim[d] - rim[c]) @ across >= 0 else -1.0
    reach, reach_across = _half_pixel(along, steps), _half_pixel(across, steps)
    middle = (rim[c] + rim[d]) / 2
    half = float(width[c, d]) / 2 + reach_across
    first = (rim[a] - along * reach, rim[b] + along * reach)
    second = (middle - turn * across * half, middle + turn * across * half)
    longest, perpendicular = float(far[a, b]) + 2 * reach, 2 * half
    if perpendicular > longest:  # a square of few pixels
        return perpendicular, longest, np.array([*second, *first])
    return longest, perpendicular, np.array([*first, *second])


def _half_pixel(direction: Points, steps: Points) -> float:
    """From a pixel's middle to its margin: the pixel is taken as the ellipse inside it."""
    return float(0.5 * np.linalg.norm(direction * steps))


def _rim(points: Points, steps: Points) -> Points:
    """The pixels that are first or last of their row or column: the ends of every diameter are among them."""
    pixels = np.round(points / steps).astype(int)
    image = np.zeros(pixels.max(axis=0) - pixels.min(axis=0) + 3, dtype=bool)
    x, y = (pixels - pixels.min(axis=0) + 1).T
    image[x, y] = True
    rim = image & ~ndimage.binary_erosion(ndimage.binary_fill_holes(image))
    return points[rim[x, y]]
