"""Whether the voxels look like the sequences that they are taken for.

T1 and T1ce rank the tissues alike, and so do T2 and FLAIR rather than either of them and a T1. Cerebrospinal fluid is
the darkest tissue on T1 and FLAIR and the brightest on T2. Contrast agent brightens vessels and tumour on T1ce only.

The check compares ranks of voxels well inside the head and needs no segmentation. It abstains where the ranks do not
speak clearly, as on sequences that are not registered, and only ever warns.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.geometry import Grid
from MTMed3DCore.notice import Notice
from MTMed3DCore.sequences import NAMES
from MTMed3DCore.volume import Volume, resample

LATTICE_MM = 4.0
"""Spacing of the lattice on which the sequences are compared."""
RIM_MM = 24.0
"""How far under the surface of the head a voxel lies to count as inside: beyond scalp, skull and subarachnoid fat."""
FLUID_SHARE = 0.03
"""The darkest share of the inside on T1 and T1ce that is taken for fluid."""
KINSHIP = 0.3
"""By how much another pairing of the sequences must correlate better to be taken for the true one."""
ALIKE = 0.9999
"""Correlation from which two sequences are one image; the noise of two acquisitions keeps them well below."""
DARK, BRIGHT = 0.45, 0.7
"""Mean rank below which fluid counts as dark, and above which it counts as bright."""
ENHANCED = 3.0
"""How many times more voxels must fall than rise from T1 to T1ce to say that the two are swapped."""
ENHANCED_SHARE = 0.01
"""The smallest share of voxels that must fall to say so."""


def contradictions(volumes: Mapping[str, Volume]) -> tuple[Notice, ...]:
    """Warnings where the image contradicts the sequence that it is taken for.

    Args:
        volumes: ``t1, t1ce, t2, flair``, each on its own grid in one frame of reference.
    """
    values = _inside(volumes)
    return () if values is None else _judge(values)


def _judge(values: Mapping[str, npt.NDArray[np.float64]]) -> tuple[Notice, ...]:
    ranks = {name: _ranks(array) for name, array in values.items()}
    fault = _alike(values) or _kinship(ranks) or _fluid(ranks) or _enhancement(values)
    return (fault,) if fault else ()


def _alike(values: Mapping[str, npt.NDArray[np.float64]]) -> Notice | None:
    """No two sequences may be one image in other units or stored along other axes."""
    for a, b in combinations(values, 2):
        if values[a].std() and values[b].std() and np.corrcoef(values[a], values[b])[0, 1] > ALIKE:
            text = f"The images taken for {NAMES[a]} and {NAMES[b]} are one and the same: find the missing sequence."
            return Notice("sequence-alike", text)
    return None


def _kinship(ranks: Mapping[str, npt.NDArray[np.float64]]) -> Notice | None:
    """T1 and T1ce must correlate better with each other than with T2 and FLAIR."""

    def together(first: tuple[str, str], second: tuple[str, str]) -> float:
        return sum(float(np.corrcoef(ranks[a], ranks[b])[0, 1]) for a, b in (first, second))

    ours = together(("t1", "t1ce"), ("t2", "flair"))
    for other in ("t2", "flair"):
        third = "flair" if other == "t2" else "t2"
        if together(("t1", other), ("t1ce", third)) > ours + KINSHIP:
            text = (
                f"The image taken for T1 resembles that taken for {NAMES[other]} more than the T1ce, and the T1ce the "
                f"{NAMES[third]}: check which image is which sequence."
            )
            return Notice("contrast-kinship", text)
    return None


def _fluid(ranks: Mapping[str, npt.NDArray[np.float64]]) -> Notice | None:
    """What is darkest on T1 and T1ce must be bright on T2 and dark on FLAIR."""
    t1 = ranks["t1"] + ranks["t1ce"]
    fluid = t1 <= np.quantile(t1, FLUID_SHARE)
    t2, flair = (float(ranks[name][fluid].mean()) for name in ("t2", "flair"))
    if t2 < DARK and flair > BRIGHT:
        text = "Fluid is dark on the image taken for T2 and bright on that for FLAIR: check whether they are swapped."
        return Notice("contrast-fluid", text)
    if min(t2, flair) > BRIGHT or max(t2, flair) < DARK / 2:
        how = "bright" if t2 > BRIGHT else "dark"
        text = (
            f"What is darkest on the images taken for T1 and T1ce is {how} on both T2 and FLAIR, where fluid should be "
            "bright on T2 only: check which image is which sequence."
        )
        return Notice("contrast-fluid", text)
    return None


def _enhancement(values: Mapping[str, npt.NDArray[np.float64]]) -> Notice | None:
    """More voxels must be brighter on the T1ce, against the T1, than darker."""
    difference = _standard(values["t1ce"]) - _standard(values["t1"])
    spread = 1.4826 * float(np.median(np.abs(difference - np.median(difference)))) or 1.0
    rising, falling = (float((sign * difference > 4 * spread).mean()) for sign in (1, -1))
    if falling > ENHANCED_SHARE and falling > ENHANCED * rising:
        text = "The image taken for T1 shows more enhancement than that taken for T1ce: check whether they are swapped."
        return Notice("contrast-enhancement", text)
    return None


def _standard(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    low, middle, high = np.percentile(array, (10, 50, 90))
    return (array - middle) / max(high - low, 1e-9)


def _ranks(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    order = np.empty(array.size)
    order[array.argsort(kind="stable")] = np.linspace(0, 1, array.size)
    return order


def _inside(volumes: Mapping[str, Volume]) -> dict[str, npt.NDArray[np.float64]] | None:
    """Values of every sequence at the same places well inside the head, or None where there is no such place."""
    grid = _lattice(volumes["t1ce"].grid)
    arrays = {name: resample(volume, grid).array.astype(np.float64) for name, volume in volumes.items()}
    head = np.ones(grid.shape, dtype=bool)
    for array in arrays.values():
        head &= array > 0.1 * np.percentile(array, 98)
    head = ndimage.binary_fill_holes(ndimage.binary_opening(head))
    depth = ndimage.distance_transform_edt(np.pad(head, 1), sampling=LATTICE_MM)[1:-1, 1:-1, 1:-1]
    inside = depth > min(RIM_MM, 0.4 * float(depth.max()))
    if inside.sum() < 500:
        return None
    return {name: array[inside] for name, array in arrays.items()}


def _lattice(grid: Grid) -> Grid:
    step = np.maximum(1, np.round(LATTICE_MM / grid.spacing))
    affine = grid.affine.copy()
    affine[:3, :3] *= step
    shape = np.maximum(1, np.asarray(grid.shape) // step).astype(int)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)
