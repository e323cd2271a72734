"""Where the brain is: read off a skull-stripped study, estimated roughly for any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from scipy import ndimage

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.findings import Notice
from MTMed3DCore.geometry import Grid, VoxelBox

Mask = npt.NDArray[np.bool_]
BORDER_SHARE = 0.5
"""Share of a sequence's outermost voxels that must hold one and the same value for its background to be masked out."""
LARGEST_BRAIN_ML = 2500.0
"""A masked region beyond this is a head whose air was set to zero, not a brain (adult brains stay below 2000 ml)."""
CONSENSUS = 2
"""Sequences that must be off their background for a voxel to count as brain."""
_TOLERANCE = 1e-3
"""Ringing of a spline at a mask's edge, as a share of the 99th percentile, that still counts as background."""


def find_brain(sequences: Mapping[str, npt.NDArray[Any]], grid: Grid) -> tuple[Mask, bool, tuple[Notice, ...]]:
    """The brain mask of a study.

    A study is skull-stripped when every sequence has a constant background along the border and what two sequences at
    least show off that background is no larger than a brain. Any other study still gets a mask, of the head, with a
    notice that says so.

    Args:
        sequences: arrays (X, Y, Z) by name, among them ``t1ce``, all on `grid`.

    Returns:
        The mask (X, Y, Z), whether the study is skull-stripped, and notices.

    Raises:
        InputRefused: no brain is to be seen.
    """
    backgrounds = {name: _background(array) for name, array in sequences.items()}
    if all(value is not None for value in backgrounds.values()):
        votes = np.zeros(grid.shape, dtype=np.uint8)
        for name, array in sequences.items():
            contrast = np.abs(array - np.float32(backgrounds[name] or 0.0))
            shown = contrast[contrast > 0]
            if shown.size:
                votes += contrast > _TOLERANCE * np.percentile(shown[:: max(1, shown.size // 100_000)], 99)
        brain = _solid(votes >= min(CONSENSUS, len(sequences)))
        if not brain.any():
            raise InputRefused(
                "brain-empty",
                "No voxel shows tissue in two sequences at once.",
                "Check that the four files belong to one study and are not blank.",
            )
        if brain.sum() * grid.voxel_volume_ml <= LARGEST_BRAIN_ML:
            return brain, True, ()
    brain = _solid(_bright(sequences["t1ce"]))
    if not brain.any():
        raise InputRefused("brain-empty", "The T1ce shows no tissue.", "Check that the T1ce file is not blank.")
    notice = Notice(
        "not-skull-stripped",
        "The study is not skull-stripped, and the model was trained on skull-stripped studies: "
        "skull and scalp may be taken for tumour, and the result needs special care.",
    )
    return brain, False, (notice,)


def _background(array: npt.NDArray[Any]) -> float | None:
    """The constant value of the border, or None where the border has none."""
    faces = [np.take(array, index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
    values, counts = np.unique(np.concatenate(faces), return_counts=True)
    return float(values[counts.argmax()]) if counts.max() >= BORDER_SHARE * counts.sum() else None


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
