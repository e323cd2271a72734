"""What the checks look at: the prepared study at the resolution that their thresholds were chosen at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.sequences import SEQUENCES

Mask = npt.NDArray[np.bool_]
SPACING_MM = 2.0
"""Finer studies are averaged to about this."""
COARSEST_MM = 3.0
"""Beyond it vessels and fissures are averaged away, and what depends on them is not measured."""
FEWEST = 2000
"""Voxels of brain below which nothing but the size of the brain is measured."""
T1, T1CE, T2, FLAIR = (SEQUENCES.index(name) for name in ("t1", "t1ce", "t2", "flair"))


@dataclass(frozen=True, eq=False)
class Sample:
    """A study on a coarse grid.

    Args:
        image: float32 (4, X, Y, Z) in the order of `SEQUENCES`; only the order and the linear scale of the values of a
            sequence count, so any normalisation will do.
        brain: bool (X, Y, Z).
        tumour: bool (X, Y, Z), the whole tumour that was found.
        spacing: mm a voxel, isotropic; axes nearest to R, A, S.
    """

    image: npt.NDArray[np.float32]
    brain: Mask
    tumour: Mask
    spacing: float

    @property
    def speaks(self) -> bool:
        """Whether there is enough brain, fine enough, to say anything of what is in it."""
        return self.spacing <= COARSEST_MM and int(self.brain.sum()) >= FEWEST

    def values(self) -> npt.NDArray[np.float32]:
        """(4, N) of the brain's voxels."""
        result: npt.NDArray[np.float32] = self.image[:, self.brain]
        return result

    @cached_property
    def ranks(self) -> npt.NDArray[np.float64]:
        """(4, N) of the brain's voxels, 0 darkest to 1 brightest of their sequence; ties share their mean."""
        from scipy.stats import rankdata

        values = self.values()
        ranked: npt.NDArray[np.float64] = (rankdata(values, axis=1) - 1) / max(1, values.shape[1] - 1)
        return ranked


def take_sample(image: npt.NDArray[np.floating[Any]], brain: Mask, tumour: Mask, spacing: float) -> Sample:
    """Average a study over blocks of voxels to about `SPACING_MM`; one that is coarser is left as it is.

    Args:
        image: (4, X, Y, Z).
        brain: bool (X, Y, Z); voxels outside count for nothing.
        tumour: bool (X, Y, Z).
        spacing: mm a voxel.
    """
    side = max(1, round(SPACING_MM / spacing))
    if side == 1:
        return Sample(np.asarray(image, dtype=np.float32), brain, tumour, spacing)
    share = _blocks(brain.astype(np.float32), side)
    channels = [_blocks(np.where(brain, channel, 0).astype(np.float32), side) for channel in image]
    inside = share >= 0.5
    mean = np.stack(channels) / np.maximum(share, 0.5)
    return Sample(np.where(inside, mean, np.float32(0)), inside, _blocks(tumour, side) >= 0.5, spacing * side)


def _blocks(array: npt.NDArray[Any], side: int) -> npt.NDArray[np.float32]:
    """Means over cubes of voxels; what is missing at the far faces counts as zero."""
    padded = np.pad(array.astype(np.float32), [(0, -size % side) for size in array.shape])
    x, y, z = (size // side for size in padded.shape)
    result: npt.NDArray[np.float32] = padded.reshape(x, side, y, side, z, side).mean(axis=(1, 3, 5))
    return result


def smooth_inside(array: npt.NDArray[np.float32], mask: Mask, sigma: float) -> npt.NDArray[np.float32]:
    """Gaussian mean over the voxels of a mask alone; `sigma` in voxels."""
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(mask, array, np.float32(0)), sigma)
    result: npt.NDArray[np.float32] = total / np.maximum(weight, np.float32(1e-3))
    return result
