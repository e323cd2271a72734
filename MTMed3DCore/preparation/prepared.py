"""The prepared study: what the network sees, with the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.findings import Notice
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.preparation.brain import find_brain
from MTMed3DCore.preparation.grid import resample_axes, working_grid
from MTMed3DCore.preparation.normalise import normalise
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES

if TYPE_CHECKING:
    from MTMed3DCore.study import Study


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study on the working grid.

    Args:
        image: float32 (4, X, Y, Z) in the order of `MTMed3DCore.sequences.SEQUENCES`, normalised, zero outside the
            brain.
        brain: bool (X, Y, Z) on `grid`.
        grid: the working grid: isotropic, axes nearest to R, A, S, cropped to the brain.
        native: the T1ce grid as it came in.
        stripped: whether the study came skull-stripped.
        warnings: what the preparation noticed.
    """

    image: npt.NDArray[np.float32]
    brain: npt.NDArray[np.bool_]
    grid: Grid
    native: Grid
    stripped: bool
    warnings: tuple[Notice, ...] = ()


def prepare(
    study: Study, *, spacing_mm: float, normalisation: str = "zscore_brain", progress: Progress = silent
) -> PreparedStudy:
    """Bring a study to the working grid and normalise it, with one interpolation a sequence.

    Args:
        study: four sequences on the T1ce grid.
        spacing_mm: isotropic voxel distance of the working grid; coarser than the scan means averaging.
        normalisation: one of `MTMed3DCore.preparation.NORMALISATIONS`.
        progress: told as stage ``prepare``.

    Raises:
        InputRefused: no brain is to be seen.
        WrongUse: an unknown normalisation or a spacing that is not positive.
    """
    progress("prepare", 0.0, "Finding the brain")
    arrays = {name: study.sequences[name].array for name in SEQUENCES}
    brain_native, stripped, warnings = find_brain(arrays, study.grid)
    grid = working_grid(study.grid, VoxelBox.around(brain_native), spacing_mm)
    brain = resample_axes(brain_native, study.grid, grid, "edge") >= 0.5
    image = np.empty((len(SEQUENCES), *grid.shape), dtype=np.float32)
    for index, name in enumerate(SEQUENCES):
        progress("prepare", (1 + index) / (2 + len(SEQUENCES)), f"Resampling {name}")
        image[index] = np.where(brain, resample_axes(arrays[name], study.grid, grid, "edge"), 0.0)
    progress("prepare", 1 - 1 / (2 + len(SEQUENCES)), "Normalising intensities")
    image = normalise(image, brain, normalisation)
    progress("prepare", 1.0, "Prepared")
    return PreparedStudy(image, brain, grid, study.grid, stripped, warnings)


def to_native(prepared: PreparedStudy, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Arrays on the working grid, linearly interpolated on the native grid; zero beyond the working grid.

    Channels go one by one and axis by axis, so beyond the result only one channel's worth of memory is needed.

    Args:
        array: (C, X, Y, Z) on ``prepared.grid``.

    Returns:
        float32 (C, *native.shape).
    """
    result = np.empty((len(array), *prepared.native.shape), dtype=np.float32)
    for channel, out in zip(array, result, strict=True):
        out[...] = resample_axes(channel, prepared.grid, prepared.native, "zero")
    return result
