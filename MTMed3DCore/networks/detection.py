"""The detection decoder: a path-aggregation pyramid and RetinaNet heads.

Lin et al., Focal Loss for Dense Object Detection (arXiv 1708.02002) for the heads, which are MONAI's; Liu et al., Path
Aggregation Network (arXiv 1803.01534) for the bottom-up path.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNetClassificationHead, RetinaNetRegressionHead
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from monai.networks.layers.factories import Conv
from torch import nn

from MTMed3DCore.networks.fast.fusible import Fusible
from MTMed3DCore.networks.fast.heads import FusedHeads

DETECTION_STRIDES = (4, 8, 16, 32)
"""Strides of the four maps that carry anchors: every encoder level but the first."""


class PublishedPyramid(FeaturePyramidNetwork):
    """The published pyramid: the bottom-up path samples every second voxel and shares the top-down path's convolutions.

    No weight of it is learned for the bottom-up path, and seven of eight voxels never pass upwards; kept for the
    `published` preset alone.
    """

    def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Feature maps by level, fine to coarse, to maps of equal width at the same levels."""
        maps = list(super().forward(x).values())
        for level in range(1, len(maps)):
            maps[level] = maps[level] + maps[level - 1][:, :, ::2, ::2, ::2]
        return OrderedDict((name, block(level)) for name, block, level in zip(x, self.layer_blocks, maps, strict=True))


class PathAggregationPyramid(FeaturePyramidNetwork):
    """Top-down pyramid, then a bottom-up path with learned stride-2 convolutions and output convolutions of its own.

    Args:
        in_channels: channels of the incoming maps, fine to coarse.
        width: channels of every outgoing map.
        spatial_dims: 2 or 3.
    """

    def __init__(self, in_channels: list[int], width: int, spatial_dims: int = 3) -> None:
        super().__init__(spatial_dims=spatial_dims, in_channels_list=in_channels, out_channels=width)
        steps = len(in_channels) - 1
        conv = Conv[Conv.CONV, spatial_dims]
        self.down_blocks = nn.ModuleList(conv(width, width, 3, stride=2, padding=1) for _ in range(steps))
        self.bottom_up_blocks = nn.ModuleList(conv(width, width, 3, padding=1) for _ in range(steps))
        for convolution in (*self.down_blocks, *self.bottom_up_blocks):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Feature maps by level, fine to coarse, to maps of equal width at the same levels."""
        maps = list(super().forward(x).values())
        for level, (down, out) in enumerate(zip(self.down_blocks, self.bottom_up_blocks, strict=True), start=1):
            maps[level] = out(torch.relu(maps[level] + down(maps[level - 1])))
        return OrderedDict(zip(x, maps, strict=True))


class DetectionDecoder(Fusible):
    """From encoder levels 1 to 4 to a score and six box numbers for every anchor.

    Args:
        feature_size: the encoder's.
        num_anchors: anchors at each place of a map.
        published: use `PublishedPyramid`.
        spatial_dims: 2 or 3.
    """

    def __init__(self, feature_size: int, num_anchors: int, *, published: bool = False, spatial_dims: int = 3) -> None:
        super().__init__()
        channels = [feature_size * 2**level for level in range(1, 5)]
        width = 2 * feature_size
        self.fpn: FeaturePyramidNetwork = (
            PublishedPyramid(spatial_dims=3, in_channels_list=channels, out_channels=width)
            if published
            else PathAggregationPyramid(channels, width, spatial_dims)
        )
        self.classification_head = RetinaNetClassificationHead(width, num_anchors, 1, spatial_dims=spatial_dims)
        self.regression_head = RetinaNetRegressionHead(width, num_anchors, spatial_dims=spatial_dims)
        self.spatial_dims = spatial_dims

    def fuse(self) -> FusedHeads | None:
        """The heads with quicker convolutions; in three dimensions only."""
        if self.spatial_dims != 3:
            return None
        scores, boxes = self.classification_head, self.regression_head
        return FusedHeads(((scores.conv, scores.cls_logits), (boxes.conv, boxes.bbox_reg)))

    def forward(self, features: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Five feature maps to, for each of `DETECTION_STRIDES`, logits (B, A, x, y, z) and deltas (B, 6A, x, y, z).

        In two dimensions (B, A, x, y) and (B, 4A, x, y). The deltas are those of MONAI's `BoxCoder` with unit weights,
        anchor by anchor.
        """
        named = OrderedDict((str(level), features[level]) for level in range(1, 5))
        scores, boxes = self.classification_head, self.regression_head
        maps = self.fpn(named).values()
        fused = self.usable_form()
        if fused is not None:
            return [fused(m) for m in maps]
        # The heads' own forward looks for NaN in every map, which stalls a GPU; their layers alone do the work.
        return [(scores.cls_logits(scores.conv(m)), boxes.bbox_reg(boxes.conv(m))) for m in maps]
