"""The segmentation decoder: Swin UNETR's (Hatamizadeh et al., arXiv 2201.01266), from MONAI's UNETR blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import nn

REGIONS = ("tumour_core", "whole_tumour", "enhancing")
"""Meaning of the output channels; the regions are nested, so each has its own sigmoid."""


class SegmentationDecoder(nn.Module):
    """From the five encoder levels and the image to one logit per voxel and region.

    Args:
        in_channels: number of MR sequences.
        feature_size: the encoder's.
    """

    def __init__(self, in_channels: int, feature_size: int) -> None:
        super().__init__()

        def block(channels_in: int, channels_out: int) -> UnetrBasicBlock:
            return UnetrBasicBlock(3, channels_in, channels_out, 3, 1, "instance", res_block=True)

        def up(channels_in: int, channels_out: int) -> UnetrUpBlock:
            return UnetrUpBlock(3, channels_in, channels_out, 3, 2, "instance", res_block=True)

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
        self.out = UnetOutBlock(3, size, len(REGIONS))

    def forward(self, image: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Image (B, C, X, Y, Z) and five feature maps to logits (B, 3, X, Y, Z) in the order of `REGIONS`."""
        x = self.decoder5(self.encoder10(features[4]), features[3])
        x = self.decoder4(x, self.encoder4(features[2]))
        x = self.decoder3(x, self.encoder3(features[1]))
        x = self.decoder2(x, self.encoder2(features[0]))
        x = self.decoder1(x, self.encoder1(image))
        logits: torch.Tensor = self.out(x)
        return logits
