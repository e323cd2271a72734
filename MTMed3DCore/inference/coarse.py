"""A glance at half the resolution, which says where the segmentation need not be computed in full.

The glance is one pass over a volume of an eighth of the voxels. Where it sees no tumour, not even an unlikely one, for
`MARGIN` voxels around, a window gets the encoder and the detection only; a box found there calls for its segmentation
all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import avg_pool3d, max_pool3d, pad

from MTMed3DCore.inference.tiling import Window, padded_extent

FACTOR = 2
UNLIKELY = 0.05
"""Probability of any region from which the glance keeps a voxel; low, because it is no more than a glance."""
MARGIN = 16
"""Voxels of the working volume around them that are kept as well."""
LEAST_WINDOWS = 4
"""With fewer windows the glance costs more than it can save."""


def windows_with_tumour(
    network: Any, volume: torch.Tensor, windows: Sequence[Window], device: torch.device
) -> list[bool]:
    """For each window, whether the part that it answers for may hold tumour.

    Args:
        network: a `TaskNetwork` that segments.
        volume: (1, C, X, Y, Z), sides multiples of 32.
        windows: of the volume.
        device: the network's.
    """
    small = avg_pool3d(volume, FACTOR)
    sides = padded_extent((small.shape[2], small.shape[3], small.shape[4]))
    missing = [full - side for full, side in zip(sides, small.shape[2:], strict=True)]
    small = pad(small, (0, missing[2], 0, missing[1], 0, missing[0])).to(device)
    logits = network.segment(small, network.encode(small))
    likely = (logits[0].float().amax(0) >= torch.logit(torch.tensor(UNLIKELY)).item()).float()
    reach = MARGIN // FACTOR
    kept = max_pool3d(likely[None, None], 2 * reach + 1, stride=1, padding=reach)[0, 0].cpu()
    places = [
        tuple(slice(low // FACTOR, -(-high // FACTOR)) for low, high in zip(*window.own, strict=True))
        for window in windows
    ]
    return [bool(kept[place].any()) for place in places]
