"""Intensity normalisation: MR intensities have no unit, so every sequence is brought to zero mean and unit variance."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.preparation.kinds import NORMALISATIONS

CLIP = 6.0
"""Standard deviations at which ``zscore_brain`` cuts off; vessels in T1ce would otherwise dominate the input."""


def normalise_tensor(
    image: torch.Tensor, brain: torch.Tensor, kind: str = "zscore_brain", clip: float = CLIP
) -> torch.Tensor:
    """Normalise every channel on its own, on whatever device the image is.

    ``zscore_brain`` takes mean and deviation inside the brain, cuts off at `clip` deviations and sets everything
    outside the brain to exactly zero. ``zscore_nonzero`` is the published normalisation, MONAI's
    ``NormalizeIntensity(nonzero=True, channel_wise=True)``: statistics over the voxels of the channel that are not
    zero, no cut-off, zeros left alone, and the brain mask not used.

    Args:
        image: intensities (..., X, Y, Z), for example (4, X, Y, Z) or (B, 4, X, Y, Z).
        brain: mask that broadcasts against the image: (X, Y, Z), or (B, 1, X, Y, Z) for a batch.
        kind: one of `NORMALISATIONS`.
        clip: standard deviations.

    Returns:
        float32 tensor of the image's shape; the image itself is left as it is.

    Raises:
        WrongUse: an unknown kind.
    """
    if kind not in NORMALISATIONS:
        raise WrongUse(
            "normalisation-unknown", f"There is no normalisation {kind!r}.", f"Choose one of {NORMALISATIONS}."
        )
    image = image.float()
    mask = brain.to(device=image.device, dtype=torch.bool) if kind == "zscore_brain" else image != 0
    inside = mask.expand_as(image)
    axes = (-3, -2, -1)
    count = inside.sum(axes, keepdim=True).clamp(min=1)
    # Sums run in float64 on the CPU alone: Apple's GPUs have none, and every GPU sums pairwise.
    exact = torch.float64 if image.device.type == "cpu" else torch.float32
    mean = ((image * inside).sum(axes, keepdim=True, dtype=exact) / count).float()
    centred = (image - mean) * inside
    deviation = (centred.square().sum(axes, keepdim=True, dtype=exact) / count).sqrt().float()
    scaled = centred / torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return scaled.clamp(-clip, clip) if kind == "zscore_brain" else scaled


def normalise(
    image: npt.NDArray[np.floating[Any]], brain: npt.NDArray[np.bool_], kind: str = "zscore_brain", clip: float = CLIP
) -> npt.NDArray[np.float32]:
    """`normalise_tensor` for arrays: image (4, X, Y, Z), brain (X, Y, Z), float32 result."""
    source = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    result: npt.NDArray[np.float32] = normalise_tensor(source, torch.from_numpy(brain), kind, clip).numpy()
    return result
