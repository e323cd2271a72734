"""The segmentation decoder with its linear parts multiplied out: the same function, fewer and smaller products.

A block of Swin UNETR's decoder upsamples by a transposed convolution, joins the skip connection and convolves. The two
convolutions follow each other without anything in between, so they are one: a convolution of 2 x 2 x 2 low-resolution
voxels for each of the eight places of a fine voxel inside a coarse one (sub-pixel form, Shi et al., arXiv 1609.05158).
The skip connection keeps its own part of the kernel, and the joined map is never built. Zero padding stays exact,
because the transposed convolution has no bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn.functional import conv3d, layer_norm, leaky_relu_

from MTMed3DCore.networks.fast.rows import SLOPE, Shortcut, finish_rows
from MTMed3DCore.networks.fast.winograd import Convolution, channels_last, map_of, voxels_of, wants_channels_last

PHASES = tuple(product(range(2), repeat=3))
"""Places of a fine voxel inside a coarse one."""


def finish(x: torch.Tensor, shortcut: Shortcut | None = None, *, active: bool = True) -> torch.Tensor:
    """Instance norm without affine part, a sum, a leaky ReLU: the end of a convolution.

    Args:
        x: (B, C, X, Y, Z); gone afterwards.
        shortcut: what is added after the norm.
        active: whether the leaky ReLU follows.
    """
    voxels = voxels_of(x)
    if voxels is not None:
        finish_rows(voxels.flatten(0, 2), active, shortcut)
        return x
    y = layer_norm(x.flatten(2), (x[0, 0].numel(),)).view(x.shape)
    if shortcut is not None:
        added = shortcut.source
        if shortcut.matrix is not None:
            added = finish(pointwise(added, shortcut.matrix), active=False)
        elif shortcut.normal:
            added = finish(added, active=False)
        y.add_(added)
    return leaky_relu_(y, SLOPE) if active else y


def pointwise(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 x 1 convolution as matrix products: weight (O, C), x (B, C, X, Y, Z)."""
    voxels = voxels_of(x)
    if voxels is not None:
        return map_of(torch.matmul(voxels, weight.t()))
    return torch.matmul(weight, x.flatten(2)).unflatten(2, x.shape[2:])


def _matrix(convolution: Any) -> torch.Tensor:
    """The weight of a 1 x 1 x 1 convolution as a matrix."""
    matrix: torch.Tensor = convolution.conv.weight.detach().flatten(1)
    return matrix


class Residual(nn.Module):
    """One residual block.

    Args:
        block: MONAI's UnetResBlock; it must not change afterwards.
    """

    shortcut: torch.Tensor | None

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first = Convolution(block.conv1.conv.weight)
        self.second = Convolution(block.conv2.conv.weight)
        self.register_buffer("shortcut", _matrix(block.conv3).contiguous() if block.downsample else None, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) to (B, O, X, Y, Z)."""
        # A statement a map, so that at full resolution no map outlives the one made of it.
        y = finish(self.first(x))
        y = self.second(y)
        return finish(y, Shortcut(x, self.shortcut))


class FusedLevel(nn.Module):
    """One level of the decoder: its skip connection and its upsampling.

    Args:
        up: MONAI's UnetrUpBlock.
        across: MONAI's UnetrBasicBlock of the skip connection, None for a bare one. Neither must change afterwards.
    """

    up: torch.Tensor
    up_shortcut: torch.Tensor
    skip_shortcut: torch.Tensor

    def __init__(self, up: Any, across: Any) -> None:
        super().__init__()
        transposed = up.transp_conv.conv.weight.detach().double()
        first = up.conv_block.conv1.conv.weight.detach()
        shortcut = _matrix(up.conv_block.conv3)
        middle = transposed.shape[1]
        up_shortcut = torch.einsum("om,imabc->abcoi", shortcut[:, :middle].double(), transposed).flatten(0, 3)
        weights = {
            "up": _sub_pixel(transposed, first[:, :middle].double()),
            "up_shortcut": up_shortcut,
            "skip_shortcut": shortcut[:, middle:],
        }
        for name, weight in weights.items():
            self.register_buffer(name, weight.to(first.dtype).contiguous(), persistent=False)
        self.across = nn.Identity() if across is None else Residual(across.layer)
        self.of_skip = Convolution(first[:, middle:])
        self.second = Convolution(up.conv_block.conv2.conv.weight)

    def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Coarse (B, I, X, Y, Z) and the skip connection's source (B, S, 2X, 2Y, 2Z) to (B, O, 2X, 2Y, 2Z)."""
        # The maps of the finest level are the peak of an analysis' memory: none is kept for longer than it is needed,
        # and of those of all eight places of a fine voxel only some are made at a time.
        skip = self.across(source)
        y = self.of_skip(skip)
        shortcut = pointwise(skip, self.skip_shortcut)
        del skip
        for (a, b, c), weight in zip(PHASES, self.up_shortcut.chunk(len(PHASES)), strict=True):
            shortcut[:, :, a::2, b::2, c::2] += pointwise(x, weight)
        depth, height, width = x.shape[2:]
        for a, weight in enumerate(self.up.chunk(2)):
            # One voxel more than the coarse map along each axis: phase 0 reads from the first, phase 1 from the second.
            places = conv3d(x, weight, padding=1).unflatten(1, (2, 2, -1))
            for b, c in product(range(2), repeat=2):
                y[:, :, a::2, b::2, c::2] += places[:, b, c, :, a : a + depth, b : b + height, c : c + width]
            del places
        y = finish(y)
        y = self.second(y)
        return finish(y, Shortcut(shortcut, normal=True))


def _sub_pixel(transposed: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    """Transposed convolution (I, M, 2, 2, 2) of stride 2 and 3 x 3 x 3 convolution (O, M, 3, 3, 3) as one.

    Returns:
        (8 O, I, 2, 2, 2): for each phase and output channel, the weights of two coarse voxels along each axis; phase 0
        reads the voxel before and its own, phase 1 its own and the one after.
    """
    inputs, outputs = transposed.shape[0], following.shape[0]
    fused = transposed.new_zeros(2, 2, 2, outputs, inputs, 2, 2, 2)
    for phase in PHASES:
        for tap in product(range(3), repeat=3):
            # The fine voxel that a tap reads, counted from the coarse voxel's own first, is phase + tap - 1.
            fine = [p + t - 1 for p, t in zip(phase, tap, strict=True)]
            a, b, c = (f // 2 - (p - 1) for f, p in zip(fine, phase, strict=True))
            i, j, k = (f % 2 for f in fine)
            x, y, z = tap
            share = torch.einsum("im,om->oi", transposed[:, :, i, j, k], following[:, :, x, y, z])
            fused[phase][:, :, a, b, c] += share
    return fused.flatten(0, 3)


class FusedSegmentation(nn.Module):
    """A segmentation decoder multiplied out, for use without gradients.

    Args:
        decoder: `MTMed3DCore.networks.unetr.SegmentationDecoder`; its weights must not change afterwards.
    """

    bias: torch.Tensor
    out: torch.Tensor

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        ups = (decoder.decoder5, decoder.decoder4, decoder.decoder3, decoder.decoder2, decoder.decoder1)
        across = (None, decoder.encoder4, decoder.encoder3, decoder.encoder2, decoder.encoder1)
        self.deepest = Residual(decoder.encoder10.layer)
        self.levels = nn.ModuleList(FusedLevel(*blocks) for blocks in zip(ups, across, strict=True))
        self.register_buffer("out", _matrix(decoder.out.conv).contiguous(), persistent=False)
        self.register_buffer("bias", decoder.out.conv.conv.bias.detach().view(-1, 1, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Image (B, C, X, Y, Z) and the encoder's levels to logits (B, 3, X, Y, Z)."""
        sources = [features[3], features[2], features[1], features[0], image]
        x = features[4]
        if wants_channels_last(image):
            x, *sources = (channels_last(each) for each in (x, *sources))
        x = self.deepest(x)
        for level, source in zip(self.levels, sources, strict=True):
            x = level(x, source)
        return (pointwise(x, self.out) + self.bias).contiguous()
