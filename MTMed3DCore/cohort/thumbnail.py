"""One small picture of a study: the axial slice with most tumour, in radiological display, regions in colour."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from MTMed3DCore.exports.preview import KeyImages
from MTMed3DCore.exports.regions import REGIONS
from MTMed3DCore.findings import Findings

SIDE = 128
"""Longer side in pixels."""
QUALITY = 80
OPACITY = 0.55
AXIAL = 2
"""The axis of slices in an anatomical array (R, A, S)."""


def thumbnail(findings: Findings) -> bytes:
    """A JPEG of some kilobytes, the patient's right on the left; without the study only the regions are drawn."""
    from PIL import Image

    images = KeyImages.of(findings)
    lower, upper = np.floor(images.shown.lower).astype(int), np.ceil(images.shown.upper).astype(int)
    tumour = (images.labels > 0).sum(axis=(0, 1))
    level = int(tumour.argmax()) if tumour.any() else int(lower[AXIAL] + upper[AXIAL]) // 2
    part = (slice(lower[0], upper[0]), slice(lower[1], upper[1]), min(level, images.labels.shape[AXIAL] - 1))
    labels = images.labels[part]
    low, high = images.window
    grey = np.zeros(labels.shape) if images.image is None else (images.image[part] - low) / (high - low)
    pixels = np.repeat(255 * np.clip(grey, 0, 1)[..., None], 3, axis=-1)
    for region in REGIONS:
        inside = labels == region.label
        pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * np.array(region.color)
    # Rows run from anterior to posterior, columns from the patient's right to left; array axes are R and A upwards.
    shown = np.flip(pixels.transpose(1, 0, 2), axis=(0, 1)).astype(np.uint8)
    size_mm = np.array(labels.shape) * images.view.spacing()[:2]
    width, height = np.maximum(1, np.rint(SIDE * size_mm / size_mm.max())).astype(int).tolist()
    target = BytesIO()
    Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR).save(target, "JPEG", quality=QUALITY)
    return target.getvalue()
