"""Whether the intensities are Hounsfield units, as in CT, rather than an MR scanner's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from MTMed3DCore.domain.check import DomainCheck
from MTMed3DCore.domain.sample import Mask
from MTMed3DCore.sequences import NAMES
from MTMed3DCore.volume import Volume

AIR = (-1100.0, -850.0)
"""Hounsfield units of air; the magnitude of an MR signal is never negative."""
SOFT = (-20.0, 100.0)
"""Hounsfield units of brain, fluid and blood."""
MOST_SAMPLES = 500_000
HIGHEST_SHARE = 0.02


def ct_checks(sequences: Mapping[str, Volume], brain: Mask | None) -> list[DomainCheck]:
    """The share of voxels as dark as air on CT, of the sequence with most of them.

    It counts for nothing where the middle of the brain is not as dense as brain, so that MR that somebody has shifted
    to negative values is left alone. CT whose air was set to zero cannot be told by this.

    Args:
        sequences: by name, with the intensities that were read.
        brain: bool (X, Y, Z) on the T1ce grid, or None where it is not known.
    """
    shares = {name: _air_of_ct(volume, brain) for name, volume in sequences.items()}
    worst = max(shares, key=lambda name: shares[name])
    meaning = f"The image taken for {NAMES[worst]} looks like CT: find the MR series."
    return [
        DomainCheck(
            "ct-values", "the share of voxels with the Hounsfield value of air", shares[worst], None, HIGHEST_SHARE,
            "", meaning,
        )
    ]  # fmt: skip


def _air_of_ct(volume: Volume, brain: Mask | None) -> float:
    array = volume.array
    inside = array[brain] if brain is not None and brain.shape == array.shape and brain.any() else array[array > AIR[1]]
    if not inside.size or not SOFT[0] <= float(np.median(inside)) <= SOFT[1]:
        return 0.0
    values = array.ravel(order="K")[:: max(1, array.size // MOST_SAMPLES)]
    return float(((values >= AIR[0]) & (values <= AIR[1])).mean())
