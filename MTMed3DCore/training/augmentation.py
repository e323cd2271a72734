"""Augmentation of training patches by MONAI's transforms; boxes follow, and what lies outside the brain stays zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import radians

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandAffined,
    RandBiasField,
    RandFlipd,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSimulateLowResolution,
)
from monai.utils.type_conversion import convert_to_tensor

from MTMed3DCore.training.patches import Patch, clip_boxes
from MTMed3DCore.training.settings import AUGMENTATION

ROTATION = radians(10.0)
SCALE = 0.1
"""Largest rotation about each axis, and change of size along it."""
GAIN, SHIFT = 0.15, 0.15
"""Largest change of contrast and brightness, in standard deviations of the brain, since patches are normalised."""
GAMMA = (0.7, 1.5)
NOISE = 0.15
BIAS = (0.0, 0.15)
"""Range of the coefficients of the polynomial field."""
LOW_RESOLUTION = (0.5, 1.0)
"""Range of the factor by which a sequence is made coarser before it is brought back."""


class Augmentation:
    """Varies patches: the whole patch in space, and each sequence by itself in intensity.

    Args:
        chances: probability by kind of `MTMed3DCore.training.settings.AUGMENTATION`; 0 for one that is not named.
    """

    def __init__(self, chances: Mapping[str, float]) -> None:
        chance = dict.fromkeys(AUGMENTATION, 0.0) | dict(chances)
        keys = ("image", "regions")
        spatial = [
            # The first axis runs from left to right; the brain is not symmetric along the others.
            RandFlipd(keys, prob=chance["flip"], spatial_axis=0, allow_missing_keys=True),
            RandAffined(
                keys,
                prob=chance["affine"],
                rotate_range=(ROTATION,) * 3,
                scale_range=(SCALE,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
                allow_missing_keys=True,
            ),
        ]
        intensity = [
            RandSimulateLowResolution(prob=chance["low_resolution"], zoom_range=LOW_RESOLUTION),
            RandBiasField(prob=chance["bias_field"], coeff_range=BIAS),
            RandAdjustContrast(prob=chance["gamma"], gamma=GAMMA),
            RandScaleIntensity(prob=chance["intensity"], factors=GAIN),
            RandShiftIntensity(prob=chance["intensity"], offsets=SHIFT),
            RandGaussianNoise(prob=chance["noise"], std=NOISE),
        ]
        self.spatial = Compose(spatial)
        self.intensity = Compose(intensity)
        self.nothing = not any(chance.values())

    def __call__(self, patch: Patch, rng: np.random.Generator) -> Patch:
        """The patch, varied as the generator has it."""
        if self.nothing:
            return patch
        spatial_seed, intensity_seed = rng.integers(2**31, size=2)
        self.spatial.set_random_state(seed=int(spatial_seed))
        self.intensity.set_random_state(seed=int(intensity_seed))
        target = patch.target
        data = {"image": MetaTensor(patch.image, affine=torch.eye(4))}
        if target.regions is not None:
            data["regions"] = MetaTensor(target.regions[0], affine=torch.eye(4))
        moved = self.spatial(data)
        image = moved["image"].as_tensor()
        regions = None if target.regions is None else moved["regions"].as_tensor()[None].contiguous()
        # MONAI keeps account of where each voxel of the result was in the patch.
        boxes = None if target.boxes is None else move_boxes(target.boxes, moved["image"].affine, image.shape[-1])
        brain = image != 0
        varied = [convert_to_tensor(self.intensity(image[c : c + 1]), dtype=torch.float32) for c in range(len(image))]
        return Patch(torch.cat(varied) * brain, replace(target, regions=regions, boxes=boxes))


def move_boxes(boxes: torch.Tensor, affine: torch.Tensor, size: int) -> torch.Tensor:
    """Boxes of a patch in the patch that a spatial transform made of it.

    A lesion is taken for the ellipsoid that fills its box: the box around the moved ellipsoid is exact for flips and
    changes of size, and for a rotation not as loose as the box around the moved corners.

    Args:
        boxes: (N, 6), half-open voxel boxes.
        affine: 4 x 4, from voxel centres of the new patch to those of the old one.
        size: side of both in voxels.

    Returns:
        (M, 6), clipped, without those of which too little is left.
    """
    inverse = np.linalg.inv(np.asarray(affine, dtype=np.float64))
    rows = boxes.double().numpy()
    lower, upper = rows[:, :3], rows[:, 3:]
    # A half-open box reaches from half a voxel before its first centre to half a voxel after its last one.
    centre = (lower + upper - 1) / 2 @ inverse[:3, :3].T + inverse[:3, 3] + 0.5
    half = np.sqrt(((upper - lower) / 2) ** 2 @ (inverse[:3, :3] ** 2).T)
    return torch.from_numpy(clip_boxes(np.concatenate([centre - half, centre + half], axis=1), size)).float()
