"""How well a label map and the boxes of a study agree with the truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.findings import REGION_LABELS
from MTMed3DCore.geometry import VoxelBox

EVALUATED = ("whole_tumour", "tumour_core", "enhancing")


def dice(found: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    """Dice coefficient; 1 when both are empty, 0 when only one is (the rule of the BraTS challenges)."""
    total = int(found.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((found & truth).sum()) / total


def region_dice(found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> Mapping[str, float]:
    """Dice of whole tumour, tumour core and enhancing tumour of two label maps of the values 1, 2 and 4."""
    return {name: dice(np.isin(found, REGION_LABELS[name]), np.isin(truth, REGION_LABELS[name])) for name in EVALUATED}


def largest_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest connected part (26 neighbours) of a mask; an empty mask stays empty."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count == 0:
        return mask
    part: npt.NDArray[np.bool_] = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return part


def main_box(labels: npt.NDArray[np.uint8]) -> VoxelBox | None:
    """Box round the largest component of the whole tumour, or None without tumour."""
    mask = largest_component(labels > 0)
    return VoxelBox.around(mask) if mask.any() else None
