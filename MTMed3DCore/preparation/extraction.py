"""Our own brain extraction, for heads whose four sequences lie on one grid: thresholds, morphology, no learned part.

Brain is what is neither dark like bone and air on every sequence nor bright like fat on T1, and what stays joined to
the middle of the head after every bridge thinner than twice `BRIDGE_MM` is cut. Fluid in furrows and fissures is then
closed in. Intensities are relative to the tissue in the middle of the head, so no scanner's scale matters.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.geometry import Grid

EXTRACTION_MM = 2.0
"""Voxel distance at which the brain is sought; finer adds time, coarser lets bridges through the skull base."""
BRIDGE_MM = 8.0
"""Half width of what still joins the brain to its surroundings: nerves, vessels, venous sinuses, dura."""
FURROW_MM = 9.0
"""Half width of what is closed in: sulci, fissures, the tumour's rim."""
PLAUSIBLE_ML = (700.0, 2300.0)
"""Volumes that a brain with its furrows can have, children and enlarged heads included."""
_MIDDLE_BELOW_TOP_MM, _MIDDLE_RADIUS_MM = 75.0, 40.0
_DARK, _DIM_T2, _FAT_T1 = 0.45, 0.6, 1.55
_LEAST_TISSUE = 0.55

Mask = npt.NDArray[np.bool_]


def extract_brain(sequences: Mapping[str, npt.NDArray[np.float32]], grid: Grid) -> Mask | None:
    """The brain of a head.

    Args:
        sequences: t1, t1ce, t2 and flair (X, Y, Z) on `grid`, registered, without the coils' shading.
        grid: isotropic at `EXTRACTION_MM`, any orientation.

    Returns:
        bool (X, Y, Z), or None where nothing of a brain's size is found.
    """
    smooth = {name: ndimage.gaussian_filter(array, 0.5) for name, array in sequences.items()}
    middle = _middle_of_head(smooth["t1ce"], grid)
    if middle is None:
        return None
    centres = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1))
    ball = ((centres - middle) ** 2).sum(axis=-1) < _MIDDLE_RADIUS_MM**2
    relative = _relative_to(ball, smooth)
    if relative is None:
        return None
    t1, t2, flair = relative["t1"], relative["t2"], relative["flair"]
    bone = (np.maximum(t1, flair) < _DARK) & (t2 < _DIM_T2)
    tissue = (t1 > _LEAST_TISSUE) & (flair > _LEAST_TISSUE) & (t2 > _LEAST_TISSUE) & (flair + t2 > 0.9)
    # Tumour and oedema may be dark on T1, but are then bright on T2 or FLAIR.
    tissue |= (t1 > 0.3) & (flair > 1.1) & (t2 > 1.1) & (t1 < 1.2)
    brain = joined_to_middle(tissue & ~bone & (t1 < _FAT_T1), grid)
    if brain is None or not PLAUSIBLE_ML[0] <= brain.sum() * grid.voxel_volume_ml <= PLAUSIBLE_ML[1]:
        return None
    return brain


def joined_to_middle(tissue: Mask, grid: Grid) -> Mask | None:
    """The largest part of a mask after thin bridges are cut, with its furrows and holes closed."""
    room = int(np.ceil(FURROW_MM / grid.spacing.min())) + 1
    padded = np.pad(tissue, room)
    eroded = ndimage.distance_transform_edt(padded, sampling=grid.spacing) > BRIDGE_MM
    parts, count = ndimage.label(eroded)
    if not count:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    reach = BRIDGE_MM + 0.5 * grid.spacing.min()
    opened = _within(parts == sizes.argmax(), reach, grid) & padded
    closed = ~_within(~_within(opened, FURROW_MM, grid), FURROW_MM, grid)
    filled: Mask = ndimage.binary_fill_holes(closed)[room:-room, room:-room, room:-room]
    return filled


def _within(mask: Mask, distance_mm: float, grid: Grid) -> Mask:
    near: Mask = ndimage.distance_transform_edt(~mask, sampling=grid.spacing) <= distance_mm
    return near


def _middle_of_head(t1ce: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.floating] | None:
    """A point in the brain, RAS mm: below the top of the head, in the middle of what lies above it."""
    bright = t1ce > 0.15 * np.percentile(t1ce, 90)
    points = grid.to_world(np.argwhere(bright))
    if len(points) < 1000:
        return None
    # Percentiles, so that specks of noise above the head do not raise its top.
    top = float(np.percentile(points[:, 2], 99.8))
    upper = points[points[:, 2] > top - _MIDDLE_BELOW_TOP_MM]
    middle: npt.NDArray[np.floating] = upper.mean(axis=0)
    middle[2] = top - _MIDDLE_BELOW_TOP_MM
    return middle


def _relative_to(
    ball: Mask, images: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]] | None:
    """Every image divided by the median of the tissue in a ball, fluid and other outliers left aside."""
    common = ball.copy()
    for image in images.values():
        median = np.median(image[ball]) if ball.any() else 0.0
        spread = 1.48 * np.median(np.abs(image[ball] - median)) if ball.any() else 0.0
        common &= np.abs(image - median) < 2.5 * spread
    if common.sum() < 100:
        return None
    levels = {name: float(np.median(image[common])) for name, image in images.items()}
    if min(levels.values()) <= 0:
        return None
    return {name: image / np.float32(levels[name]) for name, image in images.items()}
