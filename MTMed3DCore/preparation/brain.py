"""Where the brain is: read off a skull-stripped study; for any other, the head as a last resort."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from scipy import ndimage

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.notice import Notice

Mask = npt.NDArray[np.bool_]
BORDER_SHARE = 0.5
"""Share of a sequence's outermost voxels that must hold one and the same value for its background to be masked out."""
SMALLEST_BRAIN_ML = 0.5
"""Below it there is no brain in the image, whatever lights up."""
LARGEST_BRAIN_ML = 2500.0
"""A masked region beyond this is a head whose air was set to zero, not a brain (adult brains stay below 2000 ml)."""
CONSENSUS = 2
"""Sequences that must be off their background for a voxel to count as brain."""
_SAMPLE = 500_000
"""Voxels of a sequence from which that percentile is taken."""
_TOLERANCE = 1e-3
"""Ringing of a spline at a mask's edge, as a share of the 99th percentile, that still counts as background."""


@dataclass(frozen=True, eq=False)
class StrippedBrain:
    """What a skull-stripped study shows.

    Args:
        mask: bool (X, Y, Z).
        agreement: smallest Dice overlap of one sequence's own brain with the mask: near 1 where all are registered.
    """

    mask: Mask
    agreement: float


def find_stripped_brain(sequences: Mapping[str, npt.NDArray[Any]], grid: Grid) -> StrippedBrain | None:
    """The brain of a skull-stripped study, or None for a study that is not.

    A study is skull-stripped when every sequence has a constant background along the border and what two sequences at
    least show off that background is no larger than a brain.

    Args:
        sequences: arrays (X, Y, Z) by name, all on `grid`.

    Raises:
        InputRefused: the background is constant and no brain is to be seen off it.
    """
    backgrounds = {name: _background(array) for name, array in sequences.items()}
    if any(value is None for value in backgrounds.values()):
        return None
    with ThreadPoolExecutor() as pool:
        found = pool.map(_off_background, sequences.values(), (backgrounds[name] for name in sequences))
        shown = [mask for mask in found if mask is not None]
    votes = np.zeros(grid.shape, dtype=np.uint8)
    for mask in shown:
        votes += mask
    brain = _solid(votes >= min(CONSENSUS, len(sequences)))
    if brain.sum() * grid.voxel_volume_ml < SMALLEST_BRAIN_ML:
        raise InputRefused(
            "brain-empty",
            f"Only {brain.sum() * grid.voxel_volume_ml:.2g} ml show tissue in two sequences at once.",
            "Check that the four files belong to one study and are not blank.",
        )
    if brain.sum() * grid.voxel_volume_ml > LARGEST_BRAIN_ML:
        return None
    size = np.count_nonzero(brain)
    overlaps = [2 * np.count_nonzero(own & brain) / (np.count_nonzero(own) + size) for own in shown]
    return StrippedBrain(brain, min(overlaps))


def head_instead_of_brain(t1ce: npt.NDArray[Any], grid: Grid) -> tuple[Mask, str, tuple[Notice, ...]]:
    """The last resort for a study that is not skull-stripped: all that is bright on T1ce, with a notice that says so.

    Returns:
        The mask (X, Y, Z), its source ``"head"``, and the notice.

    Raises:
        InputRefused: the T1ce shows no tissue.
    """
    head = _solid(_bright(t1ce))
    if not head.any():
        raise InputRefused("brain-empty", "The T1ce shows no tissue.", "Check that the T1ce file is not blank.")
    notice = Notice(
        "not-skull-stripped",
        "The study is not skull-stripped and no brain could be told from its head, while the model was trained on "
        "skull-stripped studies: skull and scalp may be taken for tumour. Give a brain mask.",
    )
    return head, "head", (notice,)


def _background(array: npt.NDArray[Any]) -> float | None:
    """The constant value of the border, or None where the border has none."""
    faces = [array[(*axis * (slice(None),), index)].ravel() for axis in range(3) for index in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()]) if counts.max() >= BORDER_SHARE * counts.sum() else None


def _off_background(array: npt.NDArray[Any], background: float | None) -> Mask | None:
    """Voxels that differ from the background by more than ringing; None where none differs at all."""
    contrast = np.abs(array - np.float32(background or 0.0))
    values = contrast.ravel(order="K")
    off = values[:: max(1, values.size // _SAMPLE)]
    off = off[off > 0]
    if not off.size:
        off = values[values > 0]
    if not off.size:
        return None
    mask: Mask = contrast > _TOLERANCE * np.percentile(off, 99)
    return mask


def _bright(array: npt.NDArray[Any]) -> Mask:
    """Voxels above Otsu's threshold (IEEE Trans SMC 9, 1979)."""
    # The brightest percent (vessels, fat) would otherwise pull the threshold into the brain.
    clipped = np.minimum(array, np.percentile(array[::2, ::2, ::2], 99)).astype(np.float32)
    if clipped.min() == clipped.max():
        return np.zeros(array.shape, dtype=np.bool_)
    threshold = SimpleITK.OtsuThresholdImageFilter()
    threshold.Execute(SimpleITK.GetImageFromArray(clipped))
    bright: Mask = clipped > threshold.GetThreshold()
    return bright


def _solid(mask: Mask) -> Mask:
    """The largest component of a mask (6-connected) with its inner holes filled."""
    result = np.zeros_like(mask)
    if not mask.any():
        return result
    where = VoxelBox.around(mask).slices(mask.shape)
    components, _ = ndimage.label(mask[where])
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = np.pad(components == sizes.argmax(), 1)
    # A hole is a background component that does not reach the rim; far cheaper than repeated dilation.
    outside, _ = ndimage.label(~largest)
    result[where] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return result
