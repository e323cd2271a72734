"""The segmentation decoder: Swin UNETR's (Hatamizadeh et al., arXiv 2201.01266), from MONAI's UNETR blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import nn

from MTMed3DCore.networks.fast.decoder import FusedSegmentation
from MTMed3DCore.networks.fast.fusible import Fusible

REGIONS = ("tumour_core", "whole_tumour", "enhancing")
"""Meaning of the output channels; the regions are nested, so each has its own sigmoid."""

REGION_PRIOR = 0.02
"""Probability of a region with which an untrained decoder begins, about the share of a patch that a tumour fills. From
one half, the bias alone would take a thousand steps of AdamW to get there, and until then the Dice term sees little but
background (the initialisation of Lin et al., arXiv 1708.02002, section 4.1, for voxels)."""


class SegmentationDecoder(Fusible):
    """From the five encoder levels and the image to one logit per voxel and region.

    Args:
        in_channels: number of MR sequences.
        feature_size: the encoder's.
        regions: channels of the output.
        spatial_dims: 2 or 3.
    """

    def __init__(self, in_channels: int, feature_size: int, regions: int = len(REGIONS), spatial_dims: int = 3) -> None:
        super().__init__()

        def block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
            return UnetrBasicBlock(spatial_dims, channels_in, channels_out, 3, 1, "instance", res_block=True)

        def up(channels_in: int, channels_out: int) -> UnetrUpBlock:
            return UnetrUpBlock(spatial_dims, channels_in, channels_out, 3, 2, "instance", res_block=True)

        size = feature_size
        self.encoder1 = block(in_channels, size)
        self.encoder2 = block(size, size)
        self.encoder3 = block(2 * size, 2 * size)
        self.encoder4 = block(4 * size, 4 * size)
        self.encoder10 = block(16 * size, 16 * size)
        self.decoder5 = up(16 * size, 8 * size)
        self.decoder4 = up(8 * size, 4 * size)
        self.decoder3 = up(4 * size, 2 * size)
        self.decoder2 = up(2 * size, size)
        self.decoder1 = up(size, size)
        self.out = UnetOutBlock(spatial_dims, size, regions)
        nn.init.constant_(self.out.conv.conv.bias, math.log(REGION_PRIOR / (1 - REGION_PRIOR)))
        self.spatial_dims = spatial_dims

    def fuse(self) -> FusedSegmentation | None:
        """The linear parts multiplied out; in three dimensions only."""
        return FusedSegmentation(self) if self.spatial_dims == 3 else None

    def forward(self, image: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Image (B, C, X, Y, Z) and five feature maps to logits (B, R, X, Y, Z), in brain studies of `REGIONS`."""
        fused = self.usable_form()
        if fused is not None:
            logits: torch.Tensor = fused(image, features)
            return logits
        x = self.decoder5(self.encoder10(features[4]), features[3])
        x = self.decoder4(x, self.encoder4(features[2]))
        x = self.decoder3(x, self.encoder3(features[1]))
        x = self.decoder2(x, self.encoder2(features[0]))
        x = self.decoder1(x, self.encoder1(image))
        logits = self.out(x)
        return logits

    def fine_parts(self) -> list[nn.Module]:
        """The parts at full and half resolution, which hold most of the activations."""
        return [self.encoder1, self.encoder2, self.decoder2, self.decoder1]
