"""ResFormer-MTL: residual stages joined with a multi-scale Swin transformer, for segmentation and classification.

Bui, Le, Bum, Choo, Pham, Han (arXiv 2412.00351; Artif Intell Med 2025, 103338), from its description; two and three
dimensions. `docs/families.md` says what is published, what is our reading and what is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.blocks import UpSample
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_norm_layer
from torch import nn
from torch.nn.functional import interpolate

from MTMed3DCore.networks.interface import ParallelTaskNetwork, checked_config
from MTMed3DCore.networks.resformer_parts import (
    FeatureEnhancement,
    Norm,
    convolution,
    patch_embedding,
    patch_merging,
    residual_blocks,
    swin_stage,
)

TASKS = ("segmentation", "grading")
VARIANTS = ("sequential", "parallel")
NORMS = ("batch", "group")
STRIDE = 16
"""Of the deepest of the four levels; they have strides 2, 4, 8 and 16."""
HIDDEN = 32
"""Width between the two linear layers of the classification head."""
PUBLISHED_BLOCKS = (3, 4, 6, 3)
KERNELS = {2: (2, 4, 8, 16), 3: (2, 4, 8)}
"""Of the patch embedding. A kernel of 16 has 4,096 weights a channel in three dimensions; it is left out there."""
STEM = {2: 7, 3: 3}
"""Side of the first convolution, at full resolution; 7 in three dimensions would cost more than all that follows."""


def _norm(name: str) -> Norm:
    return "batch" if name == "batch" else ("group", {"num_groups": 4})


class ResFormerEncoder(nn.Module):
    """Four stages of residual blocks and Swin blocks.

    Sequential form: the residual blocks' map plus the tokens goes through the Swin blocks, and what comes out is merged
    to the tokens of the next stage. Parallel form: Swin blocks see the tokens alone and are added to the residual map.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dims, size, norm = config["spatial_dims"], config["feature_size"], _norm(config["norm"])
        self.parallel = config["variant"] == "parallel"
        widths = [size * 2**level for level in range(4)]
        self.stem = convolution(dims, config["in_channels"], size, STEM[dims], norm)
        self.pool = Pool[Pool.MAX, dims](3, stride=2, padding=1)
        self.residual = nn.ModuleList(
            residual_blocks(dims, widths[max(0, level - 1)], widths[level], count, 2 if level else 1, norm)
            for level, count in enumerate(config["blocks"])
        )
        self.tokens = nn.ModuleList([patch_embedding(dims, config["in_channels"], size, KERNELS[dims])])
        self.tokens.extend(patch_merging(dims, width) for width in widths[:-1])
        total = sum(config["depths"])
        rates = [config["drop_path"] * place / max(1, total - 1) for place in range(total)]
        self.swin = nn.ModuleList()
        for level, depth in enumerate(config["depths"]):
            rest, rates = rates[:depth], rates[depth:]
            self.swin.append(swin_stage(dims, widths[level], 2 ** (level + 1), config["window"], rest))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Image (B, C, X, Y, Z) to four levels of strides 2, 4, 8 and 16."""
        levels: list[torch.Tensor] = []
        before, x = image, self.pool(self.stem(image))
        for residual, tokens, swin in zip(self.residual, self.tokens, self.swin, strict=True):
            x = residual(x)
            small = tokens(before)
            x = x + swin(small) if self.parallel else swin(x + small)
            before = x
            levels.append(x)
        return levels


class ResFormerDecoder(nn.Module):
    """Three times up, each joined with the skip of that stride, then to full resolution."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dims, size, norm = config["spatial_dims"], config["feature_size"], _norm(config["norm"])
        widths = [size * 2**level for level in range(4)]
        enhance = config["variant"] == "sequential" and config["rates"]
        self.enhance = nn.ModuleList(
            FeatureEnhancement(dims, width, config["rates"], norm) if enhance else nn.Identity() for width in widths
        )
        mode = "pixelshuffle" if config["variant"] == "parallel" else "deconv"
        self.up = nn.ModuleList(UpSample(dims, 2 * width, width, 2, mode=mode) for width in widths[:-1])
        self.join = nn.ModuleList(convolution(dims, 2 * width, width, 3, norm) for width in widths[:-1])
        self.out = Conv[Conv.CONV, dims](size, config["regions"], 1, bias=False)
        self.mode = "bilinear" if dims == 2 else "trilinear"

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four levels to logits (B, R, X, Y, Z) at twice the resolution of the first."""
        skips = [enhance(level) for enhance, level in zip(self.enhance, features, strict=True)]
        x = skips[-1]
        for level in (2, 1, 0):
            x = self.join[level](torch.cat([self.up[level](x), skips[level]], dim=1))
        # The 1 x 1 convolution and the interpolation commute; few classes are cheaper to enlarge than many channels.
        return interpolate(self.out(x), scale_factor=2, mode=self.mode, align_corners=True)


class MultiScaleHead(nn.Module):
    """Labels from the pooled deepest two levels, before any enhancement."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        dims, size = config["spatial_dims"], config["feature_size"]
        self.norms = nn.ModuleList(get_norm_layer(_norm(config["norm"]), dims, size * factor) for factor in (4, 8))
        self.linear1 = nn.Linear(12 * size, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, config["labels"])
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_normal_(layer.weight)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Levels to logits (B, L); the published head has no activation between its two linear layers."""
        pooled = [torch.relu(norm(m)).flatten(2).mean(dim=2) for norm, m in zip(self.norms, features[2:], strict=True)]
        logits: torch.Tensor = self.linear2(self.linear1(torch.cat(pooled, dim=1)))
        return logits


class ResFormer(ParallelTaskNetwork):
    """The network of both variants; see `build_resformer` for the arguments, which `config` gives back."""

    family = "resformer"
    stride = STRIDE

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.encoder = ResFormerEncoder(config)
        self.segmentation_decoder = ResFormerDecoder(config) if "segmentation" in self.tasks else None
        self.grading_head = MultiScaleHead(config) if "grading" in self.tasks else None

    def segment(self, x: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Logits (B, R, X, Y, Z)."""
        return None if self.segmentation_decoder is None else self.segmentation_decoder(features)

    def last_shared(self) -> list[torch.Tensor]:
        """The output layer of the last feed-forward part."""
        last = self._config["depths"][-1] - 1
        return [self.encoder.get_parameter(f"swin.3.blocks.{last}.mlp.mlp.linear2.weight")]

    def costly_parts(self) -> list[nn.Module]:
        """The enhancement and the join of the finest skip; batch norms would count a batch twice."""
        decoder = self.segmentation_decoder
        if not isinstance(decoder, ResFormerDecoder) or self._config["norm"] == "batch":
            return []
        return [decoder.enhance[0], decoder.join[0]]


def build_resformer(
    *,
    spatial_dims: int = 3,
    in_channels: int = 4,
    tasks: Sequence[str] = TASKS,
    regions: int = 3,
    labels: int = 2,
    feature_size: int = 64,
    blocks: Sequence[int] = PUBLISHED_BLOCKS,
    depths: Sequence[int] = (2, 2, 2, 2),
    window: int = 6,
    rates: Sequence[int] = (6, 12, 18),
    variant: str = "sequential",
    norm: str = "batch",
    drop_path: float = 0.1,
) -> ResFormer:
    """A ResFormer with fresh weights.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        tasks: some of `TASKS`.
        regions: channels of the segmentation.
        labels: of the classification.
        feature_size: channels of the first level, a multiple of 8; published: 64.
        blocks: residual blocks of each of the four stages; published: those of ResNet-34.
        depths: Swin blocks of each stage, at least 2.
        window: side of the attention windows in tokens; published: a sixteenth of the image's side, which is the side
            of the deepest map, so that no window is ever cut short.
        rates: dilations of the feature enhancement; none leaves it out.
        variant: ``"sequential"``, or ``"parallel"``, which has no feature enhancement.
        norm: ``"batch"`` as published, or ``"group"`` where a batch is one patch.
        drop_path: chance with which the last Swin block is skipped in training; it rises from 0 at the first.

    Raises:
        WrongUse: ``network-setting``, naming the setting and its value.
    """
    config = {
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
        "tasks": list(tasks),
        "regions": regions,
        "labels": labels,
        "feature_size": feature_size,
        "blocks": list(blocks),
        "depths": list(depths),
        "window": window,
        "rates": list(rates),
        "variant": variant,
        "norm": norm,
        "drop_path": drop_path,
    }
    own = {
        "feature_size": (feature_size >= 8 and feature_size % 8 == 0, "a multiple of 8"),
        "blocks": (len(blocks) == 4 and min(blocks) >= 1, "four numbers from 1"),
        "depths": (len(depths) == 4 and min(depths) >= 2, "four numbers from 2"),
        "rates": (all(rate >= 1 for rate in rates), "numbers from 1"),
        "variant": (variant in VARIANTS, f"one of {', '.join(VARIANTS)}"),
        "norm": (norm in NORMS, f"one of {', '.join(NORMS)}"),
        "drop_path": (0 <= drop_path < 1, "from 0 to below 1"),
    }
    return ResFormer(checked_config("a ResFormer", config, TASKS, own))
