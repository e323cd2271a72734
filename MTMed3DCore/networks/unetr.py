"""The segmentation decoder: Swin UNETR's (Hatamizadeh et al., arXiv 2201.01266), from MONAI's UNETR blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrUpBlock
from torch import nn

from MTMed3DCore.networks.fast.decoder import FusedSegmentation

REGIONS = ("tumour_core", "whole_tumour", "enhancing")
"""Meaning of the output channels; the regions are nested, so each has its own sigmoid."""

REGION_PRIOR = 0.02
"""Probability of a region with which an untrained decoder begins, about the share of a patch that a tumour fills. From
one half, the bias alone would take a thousand steps of AdamW to get there, and until then the Dice term sees little but
background (the initialisation of Lin et al., arXiv 1708.02002, section 4.1, for voxels)."""


class SegmentationDecoder(nn.Module):
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
        self.fused: FusedSegmentation | None = None
        self.register_load_state_dict_post_hook(_drop_fused)

    def multiply_out(self) -> None:
        """Fuse the linear parts for use without gradients; loading weights or training drops the fused ones."""
        if self.spatial_dims == 3:
            self.fused = FusedSegmentation(self)

    def train(self, mode: bool = True) -> Self:
        """As of every module; fused weights would go stale in training."""
        if mode:
            self.fused = None
        return super().train(mode)

    def forward(self, image: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Image (B, C, X, Y, Z) and five feature maps to logits (B, R, X, Y, Z), in brain studies of `REGIONS`."""
        if self.fused is not None and not torch.is_grad_enabled():
            fused: torch.Tensor = self.fused(image, features)
            return fused
        x = self.decoder5(self.encoder10(features[4]), features[3])
        x = self.decoder4(x, self.encoder4(features[2]))
        x = self.decoder3(x, self.encoder3(features[1]))
        x = self.decoder2(x, self.encoder2(features[0]))
        x = self.decoder1(x, self.encoder1(image))
        logits: torch.Tensor = self.out(x)
        return logits

    def fine_parts(self) -> list[nn.Module]:
        """The parts at full and half resolution, which hold most of the activations."""
        return [self.encoder1, self.encoder2, self.decoder2, self.decoder1]


def _drop_fused(decoder: Any, _: object) -> None:
    """Weights that came in later make the fused ones stale."""
    decoder.fused = None
