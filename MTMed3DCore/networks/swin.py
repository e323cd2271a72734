"""The shared Swin transformer encoder.

Liu et al., Swin Transformer (arXiv 2103.14030), in the three-dimensional form of Swin UNETR (Hatamizadeh et al.,
arXiv 2201.01266); both are MONAI's implementation. Only the published patch merging is ours, because MONAI has since
mended it.
"""

from __future__ import annotations

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinTransformer
from torch import nn

DEPTHS = (2, 2, 2, 2)
HEADS = (3, 6, 12, 24)
ATTENTION_WINDOW = 7
STRIDES = (2, 4, 8, 16, 32)
"""Downsampling of the five encoder levels against the input."""

PUBLISHED_OFFSETS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))
"""Sub-lattices in the order in which MONAI 0.9 reads them."""


class PublishedPatchMerging(PatchMergingV2):
    """Patch merging as the published weights were trained with it (MONAI 0.9).

    Of the eight sub-lattices of a volume it reads two twice and two never, so a quarter of the voxels is lost at each
    merge. Kept for the `published` preset alone: a checkpoint gives its own outputs only with it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, X, Y, Z, C) to (B, ceil(X/2), ceil(Y/2), ceil(Z/2), 2C)."""
        depth, height, width = x.shape[1:4]
        x = nn.functional.pad(x, (0, 0, 0, width % 2, 0, height % 2, 0, depth % 2))
        parts = [x[:, i::2, j::2, k::2, :] for i, j, k in PUBLISHED_OFFSETS]
        merged: torch.Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


def build_encoder(
    in_channels: int,
    feature_size: int,
    *,
    published_merging: bool = False,
    spatial_dims: int = 3,
    window: int = ATTENTION_WINDOW,
) -> SwinTransformer:
    """The encoder: patch embedding of stride 2, then four stages of two blocks, each ending in a merge.

    Args:
        in_channels: number of MR sequences.
        feature_size: channels of the first level; level k has ``feature_size * 2**k``. A multiple of 12, since the
            first stage has three heads and the group norms of the detection heads need multiples of eight.
        published_merging: use `PublishedPatchMerging` instead of the complete one.
        spatial_dims: 2 or 3.
        window: side of the attention windows in tokens.

    Returns:
        A module from (B, in_channels, X, Y, Z), or (B, in_channels, X, Y), sides multiples of 32, to five layer-normed
        feature maps of strides 2, 4, 8, 16 and 32.
    """
    return SwinTransformer(
        in_chans=in_channels,
        embed_dim=feature_size,
        window_size=(window,) * spatial_dims,
        patch_size=(2,) * spatial_dims,
        depths=DEPTHS,
        num_heads=HEADS,
        downsample=PublishedPatchMerging if published_merging else "mergingv2",
        spatial_dims=spatial_dims,
        # The same numbers through torch's fused attention; MONAI takes it only where no gradient is needed.
        use_flash_attention=True,
    )
