"""MTMedFormer: one hierarchical transformer encoder that knows no task, and a decoder for each task.

After the abstract of Nath, Shukla, Gupta (Med Biol Eng Comput 2025, doi 10.1007/s11517-025-03404-z): a transformer, one
shared encoder with task-agnostic features, task-specific decoders, a hybrid loss. Nothing more of it is public; the
encoder, the decoders and the loss here are our reading, and no published number is claimed (`docs/families.md`).

The encoder is a Swin transformer (arXiv 2103.14030); the decoders are those of UNETR (segmentation), a path-aggregation
pyramid with RetinaNet heads (detection), and pooled deepest levels with two linear layers (classification). Unlike
MTMed3D's grading, the classification reads the encoder alone, so it trains from labels where no mask is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from MTMed3DCore.networks.detection import DetectionDecoder
from MTMed3DCore.networks.interface import ParallelTaskNetwork, checked_config
from MTMed3DCore.networks.registry import TASKS
from MTMed3DCore.networks.swin import ATTENTION_WINDOW, STRIDES, build_encoder
from MTMed3DCore.networks.unetr import SegmentationDecoder


class ClassificationDecoder(nn.Module):
    """Labels from the means of the deepest two levels.

    Args:
        feature_size: the encoder's.
        labels: of the output.
    """

    def __init__(self, feature_size: int, labels: int) -> None:
        super().__init__()
        width = 8 * feature_size + 16 * feature_size
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * feature_size)
        self.linear2 = nn.Linear(4 * feature_size, labels)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Five levels to logits (B, L)."""
        pooled = torch.cat([level.flatten(2).mean(dim=2) for level in features[3:]], dim=1)
        logits: torch.Tensor = self.linear2(torch.nn.functional.gelu(self.linear1(self.norm(pooled))))
        return logits


class MTMedFormer(ParallelTaskNetwork):
    """The network; see `build_mtmedformer` for the arguments, which `config` gives back."""

    family = "mtmedformer"
    stride = STRIDES[-1]

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        channels, size, dims = config["in_channels"], config["feature_size"], config["spatial_dims"]
        self.encoder = build_encoder(channels, size, spatial_dims=dims, window=config["window"])
        self.segmentation_decoder = (
            SegmentationDecoder(channels, size, config["regions"], dims) if "segmentation" in self.tasks else None
        )
        self.detection_decoder = (
            DetectionDecoder(size, config["num_anchors"], spatial_dims=dims) if "detection" in self.tasks else None
        )
        self.grading_head = ClassificationDecoder(size, config["labels"]) if "grading" in self.tasks else None

    def segment(self, x: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Logits (B, R, X, Y, Z)."""
        return None if self.segmentation_decoder is None else self.segmentation_decoder(x, features)

    def last_shared(self) -> list[torch.Tensor]:
        """The deepest merge."""
        return [self.encoder.get_parameter("layers4.0.downsample.reduction.weight")]

    def costly_parts(self) -> list[nn.Module]:
        """Parts of the segmentation decoder at full and half resolution."""
        decoder = self.segmentation_decoder
        return decoder.fine_parts() if isinstance(decoder, SegmentationDecoder) else []


def build_mtmedformer(
    *,
    spatial_dims: int = 3,
    in_channels: int = 4,
    tasks: Sequence[str] = TASKS,
    regions: int = 3,
    labels: int = 2,
    num_anchors: int = 5,
    feature_size: int = 24,
    window: int = ATTENTION_WINDOW,
) -> MTMedFormer:
    """An MTMedFormer with fresh weights.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        tasks: some of `TASKS`.
        regions: channels of the segmentation.
        labels: of the classification.
        num_anchors: anchors at each place of a detection map.
        feature_size: channels of the first level, a multiple of 12.
        window: side of the attention windows in tokens; a sixteenth of the image's side cuts no window short.

    Raises:
        WrongUse: ``network-setting``, naming the setting and its value.
    """
    config = {
        "spatial_dims": spatial_dims,
        "in_channels": in_channels,
        "tasks": list(tasks),
        "regions": regions,
        "labels": labels,
        "num_anchors": num_anchors,
        "feature_size": feature_size,
        "window": window,
    }
    own = {"feature_size": (feature_size >= 12 and feature_size % 12 == 0, "a multiple of 12")}
    return MTMedFormer(checked_config("an MTMedFormer", config, TASKS, own))
