"""Lesion-wise Dice and HD95 after the rules of the BraTS 2023 challenges for adult glioma.

The rules (Synapse syn51156910, "performance metrics"; Saluja et al.), for each of the regions by itself:

1. The truth is dilated by three steps of the 18-neighbourhood at 1 mm. True parts whose dilations touch are one lesion.
2. The found parts (26 neighbours) that reach into a lesion's dilation are, together, what was found of that lesion;
   Dice and HD95 compare them with the lesion itself, undilated. A lesion that nothing reaches scores Dice 0 and HD95
   374 mm.
3. A lesion of at most 50 mm³ is left out of the mean, and what reaches it is no false lesion.
4. Every found part that reaches no lesion is a false lesion: Dice 0, HD95 374 mm, however small it is.
5. A case's score is the mean over its lesions and false lesions; Dice 1 and HD95 0 where there is neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.evaluation.surface import ABSENT_MM, crop_to_both, hd95_mm

DILATION_MM = 3
SMALLEST_MM3 = 50.0
_TOUCHING = np.ones((3, 3, 3), dtype=bool)
_STEP = ndimage.generate_binary_structure(3, 2)
_UNIT_TOLERANCE = 0.01


@dataclass(frozen=True)
class LesionWise:
    """Lesion-wise score of one region of one case.

    Args:
        dice: 0 to 1, mean over lesions and false lesions.
        hd95_mm: the same.
        lesions: true lesions above the size limit.
        missed: how many of them nothing reaches.
        false: found parts that reach no true lesion.
    """

    dice: float
    hd95_mm: float
    lesions: int
    missed: int
    false: int


def lesion_wise(
    found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_], spacing: Sequence[float] | npt.NDArray[np.floating]
) -> LesionWise:
    """Score one region.

    Args:
        found, truth: (X, Y, Z) on one grid.
        spacing: of that grid, mm. Away from 1 mm the dilation keeps its shape and size in mm.
    """
    if not (found | truth).any():
        return LesionWise(1.0, 0.0, 0, 0, 0)
    found, truth = (np.pad(each, _margin(spacing)) for each in crop_to_both(found, truth))
    near = dilate(truth, spacing)
    numbers, count = ndimage.label(near, structure=_TOUCHING)
    parts, part_count = ndimage.label(found, structure=_TOUCHING)
    volume_mm3 = float(np.prod(spacing))
    dices, distances = [], []
    missed, reached = 0, np.zeros(part_count + 1, dtype=bool)
    for number in range(1, count + 1):
        lesion = truth & (numbers == number)
        touching = np.unique(parts[numbers == number])
        touching = touching[touching > 0]
        reached[touching] = True
        if lesion.sum() * volume_mm3 <= SMALLEST_MM3:
            continue
        own = np.isin(parts, touching) & found
        missed += int(touching.size == 0)
        dices.append(dice(own, lesion))
        distances.append(hd95_mm(own, lesion, spacing))
    false = part_count - int(reached.sum())
    total = len(dices) + false
    if total == 0:
        return LesionWise(1.0, 0.0, 0, 0, 0)
    distance = (sum(distances) + false * ABSENT_MM) / total
    return LesionWise(sum(dices) / total, distance, len(dices), missed, false)


def dilate(mask: npt.NDArray[np.bool_], spacing: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """The mask grown by `DILATION_MM`.

    Three steps of the 18-neighbourhood reach every offset of at most 3 voxels along each axis and 6 in sum; on a grid
    that is not of 1 mm the same offsets are taken in mm.
    """
    grown: npt.NDArray[np.bool_]
    if np.allclose(spacing, 1.0, atol=_UNIT_TOLERANCE):
        grown = ndimage.binary_dilation(mask, structure=_STEP, iterations=DILATION_MM)
    else:
        grown = ndimage.binary_dilation(mask, structure=_footprint(spacing))
    return grown


def _margin(spacing: Sequence[float] | npt.NDArray[np.floating]) -> list[tuple[int, int]]:
    """Voxels on both sides of each axis into which a dilation can reach."""
    return [(reach, reach) for reach in (int(np.ceil(DILATION_MM / side)) for side in spacing)]


def _footprint(spacing: Sequence[float] | npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    reaches = [int(DILATION_MM / side + 1e-6) for side in spacing]
    offsets = np.array(list(product(*(range(-reach, reach + 1) for reach in reaches)))) * np.asarray(spacing)
    inside = np.abs(offsets).sum(axis=1) <= 2 * DILATION_MM + 1e-6
    shape: list[int] = [2 * reach + 1 for reach in reaches]
    return inside.reshape(shape)
