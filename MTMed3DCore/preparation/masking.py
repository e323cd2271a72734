"""The brain mask of a study, from the best source that there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy import ndimage

from MTMed3DCore.geometry import FloatArray, Grid
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation.brain import head_instead_of_brain
from MTMed3DCore.preparation.external import external_mask
from MTMed3DCore.preparation.extraction import EXTRACTION_MM, extract_brain
from MTMed3DCore.preparation.grid import resample_axes
from MTMed3DCore.preparation.head import isotropic
from MTMed3DCore.preparation.record import itk_transform
from MTMed3DCore.volume import Volume, from_sitk

APPROXIMATE = (
    "The brain was outlined by the built-in method, which is approximate: look at preparation/brain_mask.nii.gz, and "
    "give a better mask if it cuts into the brain or takes in skull."
)


@dataclass(frozen=True, eq=False)
class BrainMask:
    """A brain mask on the T1ce grid, where it comes from (a key of `BRAIN_SOURCES`), and what to know of it."""

    mask: npt.NDArray[np.bool_]
    source: str
    notices: tuple[Notice, ...] = ()


def find_mask(
    t1ce: Volume, even: Mapping[str, sitk.Image], matrices: Mapping[str, FloatArray], *, external: bool = True
) -> BrainMask:
    """The brain of a study that is not skull-stripped: HD-BET's, SynthStrip's, or our own.

    Args:
        t1ce: as it came in.
        even: all four sequences as they came in, without the coils' shading.
        matrices: 4 x 4 by sequence, RAS mm of the T1ce to RAS mm of the sequence.
        external: whether installed tools may be run.

    Raises:
        InputRefused: the T1ce shows nothing but air.
    """
    notices: tuple[Notice, ...] = ()
    if external:
        mask, tool, notices = external_mask(t1ce)
        if mask is not None and mask.any():
            return BrainMask(mask, tool, notices)
    reference = isotropic(even["t1ce"], EXTRACTION_MM)
    grid = from_sitk(reference).grid
    arrays = {"t1ce": sitk.GetArrayFromImage(reference).transpose(2, 1, 0)}
    for name, matrix in matrices.items():
        moved = sitk.Resample(isotropic(even[name], EXTRACTION_MM), reference, itk_transform(matrix), sitk.sitkLinear)
        arrays[name] = sitk.GetArrayFromImage(moved).transpose(2, 1, 0)
    brain = extract_brain(arrays, grid)
    if brain is None:
        return BrainMask(*head_instead_of_brain(t1ce.array, t1ce.grid))
    # The copy without shading has the T1ce's voxels, and a place that may be rounded.
    native = _on_grid(brain, grid, from_sitk(even["t1ce"]).grid)
    return BrainMask(native, "built-in", (*notices, Notice("brain-mask-approximate", APPROXIMATE)))


def _on_grid(brain: npt.NDArray[np.bool_], grid: Grid, native: Grid) -> npt.NDArray[np.bool_]:
    """A mask on another grid of the same axes, by its distance map, whose zero set is smooth."""
    inside = ndimage.distance_transform_edt(brain, sampling=grid.spacing)
    outside = ndimage.distance_transform_edt(~brain, sampling=grid.spacing)
    distance = ndimage.gaussian_filter(inside - outside, 1.0).astype(np.float32)
    result: npt.NDArray[np.bool_] = resample_axes(distance, grid, native, "edge") > 0
    return result
