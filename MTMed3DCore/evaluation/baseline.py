"""A baseline without learning: thresholds on FLAIR and on the enhancement of T1ce over T1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.evaluation.overlap import largest_component
from MTMed3DCore.findings import ENHANCING, NECROTIC_CORE, OEDEMA

FLAIR_THRESHOLD = 1.5
"""Standard deviations above the brain's mean."""
ENHANCEMENT_THRESHOLD = 2.0


def threshold_labels(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Labels 1, 2 and 4 of a skull-stripped study.

    Args:
        image: (4, X, Y, Z) in the order T1, T1ce, T2, FLAIR, near 1 mm, zero outside the brain.

    Returns:
        (X, Y, Z): FLAIR hyperintensity as the tumour, what enhances in or near it, and what the enhancement encloses.
    """
    brain = image.min(axis=0) > 0
    smooth = [ndimage.gaussian_filter(sequence, 1.0) for sequence in image]
    t1, t1ce, _, flair = ((s - s[brain].mean()) / s[brain].std() for s in smooth)
    whole = largest_component(ndimage.binary_opening((flair > FLAIR_THRESHOLD) & brain))
    gain = t1ce - t1
    bright = gain > gain[brain].mean() + ENHANCEMENT_THRESHOLD * gain[brain].std()
    enhancing = bright & ndimage.binary_dilation(whole, iterations=3) & brain
    core = ndimage.binary_fill_holes(ndimage.binary_closing(enhancing, iterations=3)) | enhancing
    labels = np.zeros(brain.shape, np.uint8)
    labels[whole] = OEDEMA
    labels[core] = NECROTIC_CORE
    labels[enhancing] = ENHANCING
    return labels
