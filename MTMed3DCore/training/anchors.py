"""Anchors fitted to the boxes that a detector shall find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.data.box_utils import box_iou
from scipy.cluster.vq import kmeans2

ANCHOR_SCALES = (1, 2, 4, 8)
"""How much larger the anchors of each detection level are than those of the first."""


def fit_anchor_shapes(sizes: npt.ArrayLike, count: int = 5, seed: int = 0) -> list[list[float]]:
    """Base anchor shapes for the finest detection level.

    MONAI multiplies the base shapes by the level's scale, so every box size is first folded by powers of two onto the
    finest level; k-means in the logarithm of the size then finds the shapes that leave the smallest ratios.

    Args:
        sizes: box extents (N, 3) in voxels of the working grid.
        count: anchors at each place.
        seed: of the clustering.

    Returns:
        `count` shapes in voxels, smallest volume first.

    Raises:
        ValueError: fewer boxes than anchors.
    """
    extent = np.asarray(sizes, dtype=np.float64)
    if len(extent) < count:
        raise ValueError(f"{count} anchor shapes need at least {count} boxes to fit, got {len(extent)}.")
    mean = np.exp(np.log(extent).mean(axis=1))
    # The finest level takes the boxes up to the size where three doublings still reach the largest of them.
    base = np.percentile(mean, 99) / ANCHOR_SCALES[-1] / np.sqrt(2)
    level = np.clip(np.round(np.log2(mean / base) - 0.5), 0, len(ANCHOR_SCALES) - 1)
    folded = np.log(extent / 2.0 ** level[:, None])
    centres, _ = kmeans2(folded, count, minit="++", rng=np.random.default_rng(seed))
    shapes = np.exp(centres)
    return [[round(float(side), 1) for side in shape] for shape in shapes[np.argsort(shapes.prod(axis=1))]]


class LevelAnchors:
    """The anchors of one input size, in voxels of the input, with the counts that the matcher asks for.

    Args:
        shapes: base shapes in voxels, (A, 3).
        scales: factor of each level.
    """

    def __init__(self, shapes: Sequence[Sequence[float]], scales: Sequence[float] = ANCHOR_SCALES) -> None:
        self.per_place = len(shapes)
        self._generator = AnchorGeneratorWithAnchorShape(feature_map_scales=scales, base_anchor_shapes=shapes)

    def __call__(self, image: torch.Tensor, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
        """Anchors (N, 6) of an image (B, C, X, Y, Z) with these maps by level, and the number of places of each level.

        The order is level, place, anchor: that of `flatten_maps`.
        """
        anchors: torch.Tensor = self._generator(image, list(maps))[0]
        return anchors, [int(np.prod(m.shape[2:])) for m in maps]


def flatten_maps(maps: Sequence[torch.Tensor], values: int) -> torch.Tensor:
    """Head maps (B, A * values, x, y, z) by level to (B, N, values) in the order of the anchors."""
    rows = []
    for level in maps:
        batch, channels = level.shape[:2]
        split = level.reshape(batch, channels // values, values, -1)
        rows.append(split.permute(0, 3, 1, 2).reshape(batch, -1, values))
    return torch.cat(rows, dim=1)


def mean_best_iou(sizes: npt.ArrayLike, shapes: Sequence[Sequence[float]]) -> float:
    """Mean over boxes of the best IoU with any anchor of any level, both centred on the same point."""
    boxes = torch.as_tensor(np.asarray(sizes), dtype=torch.float32)
    base = torch.as_tensor(shapes, dtype=torch.float32)
    anchors = torch.cat([base * scale for scale in ANCHOR_SCALES])
    centred = [torch.cat([-extent / 2, extent / 2], dim=1) for extent in (boxes, anchors)]
    overlap = box_iou(*centred)
    return float(torch.as_tensor(overlap).max(dim=1).values.mean())
