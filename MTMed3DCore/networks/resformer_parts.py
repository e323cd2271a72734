"""The parts of ResFormer: channel attention, multi-scale patch tokens, Swin stages and dilated feature enhancement.

After the description of Bui, Le, Bum, Choo (arXiv 2412.00351); `docs/families.md` says where it leaves room. Residual
blocks and Swin blocks are MONAI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from monai.networks.blocks import Convolution
from monai.networks.blocks.mlp import MLPBlock
from monai.networks.layers.factories import Conv
from monai.networks.nets.resnet import ResNetBlock
from monai.networks.nets.swin_unetr import BasicLayer
from torch import nn

Norm = str | tuple[str, dict[str, int]]


def convolution(
    spatial_dims: int,
    channels_in: int,
    channels_out: int,
    size: int,
    norm: Norm | None,
    *,
    act: bool = True,
    dilation: int = 1,
) -> Convolution:
    """Convolution without bias, then norm, then ReLU unless `act` is false."""
    return Convolution(
        spatial_dims,
        channels_in,
        channels_out,
        kernel_size=size,
        dilation=dilation,
        norm=norm,
        act=("relu", {"inplace": True}) if act else None,
        bias=False,
        adn_ordering="NA",
    )


class ChannelAttention(nn.Module):
    """Efficient channel attention with a residual path: ``x * gate + x`` (Wang et al., ECA-Net, arXiv 1910.03151).

    Args:
        size: channels whose means a gate looks at.
    """

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Channels-last tokens (B, ..., C) to the same shape; the mean is over all axes between."""
        means = x.flatten(1, -2).mean(dim=1, keepdim=True)
        gate = torch.sigmoid(self.conv(means))
        return x + x * gate.view(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])


class ChannelAttentionMlp(nn.Module):
    """The feed-forward part of a ResFormer block: two linear layers, then channel attention over all tokens.

    Tokens stay channels-last, so the attention weighs channels. The released code views (B, N, C) as (B, C, ...)
    without a transposition, which mixes tokens with channels.

    Args:
        channels: of the tokens.
        ratio: hidden units for each channel.
    """

    def __init__(self, channels: int, ratio: float = 4.0) -> None:
        super().__init__()
        self.mlp = MLPBlock(channels, int(channels * ratio), act="GELU", dropout_mode="swin")
        self.attention = ChannelAttention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, X, Y, Z, C) to the same shape."""
        weighed: torch.Tensor = self.attention(self.mlp(x))
        return weighed


class Tokens(nn.Module):
    """Convolutions of several kernels and stride 2, side by side, with channel attention.

    Args:
        spatial_dims: 2 or 3.
        channels_in: of the map.
        widths: channels of each convolution.
        kernels: even sides of each.
        norm_first: normalise the map's channels before (merging), or the tokens afterwards (embedding).
    """

    def __init__(
        self, spatial_dims: int, channels_in: int, widths: Sequence[int], kernels: Sequence[int], *, norm_first: bool
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.convs = nn.ModuleList(
            conv(channels_in, width, kernel, stride=2, padding=(kernel - 2) // 2)
            for width, kernel in zip(widths, kernels, strict=True)
        )
        self.attention = ChannelAttention()
        self.norm_first = norm_first
        self.norm = nn.LayerNorm(channels_in if norm_first else sum(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, X, Y, Z) to (B, sum of widths, X/2, Y/2, Z/2)."""
        if self.norm_first:
            x = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        tokens = self.attention(torch.cat([conv(x) for conv in self.convs], dim=1).movedim(1, -1))
        return (tokens if self.norm_first else self.norm(tokens)).movedim(-1, 1)


def patch_embedding(spatial_dims: int, channels_in: int, width: int, kernels: Sequence[int]) -> Tokens:
    """The image as tokens of stride 2: each kernel has half of the channels that are left, the last two the same."""
    widths = [width // 2 ** min(place + 1, len(kernels) - 1) for place in range(len(kernels))]
    return Tokens(spatial_dims, channels_in, widths, kernels, norm_first=False)


def patch_merging(spatial_dims: int, channels: int) -> Tokens:
    """Half the sides, twice the channels, by kernels 2 and 4."""
    return Tokens(spatial_dims, channels, (channels, channels), (2, 4), norm_first=True)


def residual_blocks(
    spatial_dims: int, channels_in: int, channels: int, count: int, stride: int, norm: Norm
) -> nn.Sequential:
    """ResNet's basic blocks (He et al., arXiv 1512.03385), MONAI's; the first has the stride."""
    shortcut = None
    if stride != 1 or channels_in != channels:
        shortcut = Convolution(
            spatial_dims, channels_in, channels, strides=stride, kernel_size=1, norm=norm, act=None, bias=False,
            adn_ordering="NA",
        )  # fmt: skip
    block = partial(ResNetBlock, spatial_dims=spatial_dims, norm=norm)
    first = block(channels_in, channels, stride=stride, downsample=shortcut)
    return nn.Sequential(first, *(block(channels, channels) for _ in range(count - 1)))


def swin_stage(spatial_dims: int, channels: int, heads: int, window: int, drop_path: Sequence[float]) -> BasicLayer:
    """Swin blocks (Liu et al., arXiv 2103.14030), every second one shifted; MONAI's, with `ChannelAttentionMlp`."""
    stage = BasicLayer(
        dim=channels,
        depth=len(drop_path),
        num_heads=heads,
        window_size=(window,) * spatial_dims,
        drop_path=list(drop_path),
        qkv_bias=True,
        use_flash_attention=True,
    )
    for block in stage.blocks:
        block.mlp = ChannelAttentionMlp(channels)
    return stage


class FeatureEnhancement(nn.Module):
    """Dilated feature enhancement of one skip connection.

    A 1 x 1 convolution and 3 x 3 convolutions of several dilations side by side are joined by a 3 x 3 convolution; a
    1 x 1 shortcut is added; spatial attention (Woo et al., CBAM, arXiv 1807.06521) weighs the places.

    Args:
        spatial_dims: 2 or 3.
        channels: of the map; they stay.
        rates: dilations.
        norm: of the convolutions.
    """

    def __init__(self, spatial_dims: int, channels: int, rates: Sequence[int], norm: Norm) -> None:
        super().__init__()
        branch = partial(convolution, spatial_dims, channels, channels, norm=norm)
        self.branches = nn.ModuleList([branch(1), *(branch(3, dilation=rate) for rate in rates)])
        self.join = convolution(spatial_dims, channels * (1 + len(rates)), channels, 3, norm, act=False)
        self.shortcut = branch(1, act=False)
        self.where = Conv[Conv.CONV, spatial_dims](2, 1, 7, padding=3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, X, Y, Z) to the same shape."""
        joined = self.join(torch.cat([branch(x) for branch in self.branches], dim=1))
        enhanced = torch.relu(joined + self.shortcut(x))
        summary = torch.cat([enhanced.mean(dim=1, keepdim=True), enhanced.amax(dim=1, keepdim=True)], dim=1)
        return enhanced * torch.sigmoid(self.where(summary))
