"""MTMed3D: one shared encoder, three decoders (Li, Iyengar, Xu; arXiv 2511.12373)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.networks.detection import DetectionDecoder
from MTMed3DCore.networks.fast import encode
from MTMed3DCore.networks.grading import GradingBranch
from MTMed3DCore.networks.interface import MultiTaskOutput, TaskNetwork, check_image
from MTMed3DCore.networks.registry import TASKS
from MTMed3DCore.networks.swin import STRIDES, build_encoder
from MTMed3DCore.networks.unetr import SegmentationDecoder

PRESETS = ("mtmed3d", "published")
FEATURE_SIZES = (12, 24, 48)
SEQUENCE_COUNT = 4


class MultiTaskNetwork(TaskNetwork):
    """The network of both presets and of the single-task variants.

    Args:
        preset: ``"published"`` computes what the authors' code computes; ``"mtmed3d"`` has the published defects
            mended (``docs/network.md`` names each).
        feature_size: 12, 24 or 48.
        tasks: any of `TASKS`. Grading reads the segmentation, so it brings the segmentation decoder with it.
        num_anchors: anchors at each place of a detection map.

    Raises:
        WrongUse: an unknown preset, size or task.
    """

    family = "mtmed3d"
    level_strides = STRIDES

    def __init__(self, preset: str, feature_size: int, tasks: Sequence[str], num_anchors: int) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise WrongUse("preset-unknown", f"There is no preset {preset!r}.", f"Choose one of {', '.join(PRESETS)}.")
        if feature_size not in FEATURE_SIZES:
            raise WrongUse("feature-size", f"feature_size is {feature_size}.", f"Choose one of {FEATURE_SIZES}.")
        if not tasks or set(tasks) - set(TASKS):
            raise WrongUse("task-unknown", f"The tasks {list(tasks)} are not known.", f"Choose among {TASKS}.")
        self.preset = preset
        self.feature_size = feature_size
        self.tasks = tuple(task for task in TASKS if task in tasks)
        self.num_anchors = num_anchors
        published = preset == "published"
        self.encoder = build_encoder(SEQUENCE_COUNT, feature_size, published_merging=published)
        needs_regions = "segmentation" in tasks or "grading" in tasks
        self.segmentation_decoder = SegmentationDecoder(SEQUENCE_COUNT, feature_size) if needs_regions else None
        self.detection_decoder = (
            DetectionDecoder(feature_size, num_anchors, published=published) if "detection" in tasks else None
        )
        self.grading_branch = GradingBranch(feature_size, published=published) if "grading" in tasks else None

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `build_network` that make this network again."""
        return {
            "preset": self.preset,
            "feature_size": self.feature_size,
            "tasks": list(self.tasks),
            "num_anchors": self.num_anchors,
        }

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image (B, 4, X, Y, Z) to the five levels.

        Raises:
            ValueError: not four channels, or a side that is no multiple of 32.
        """
        check_image(x, 3, SEQUENCE_COUNT, STRIDES[-1])
        return encode(self.encoder, x)

    def segment(self, x: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Logits (B, 3, X, Y, Z), or None in a network without the segmentation decoder."""
        return None if self.segmentation_decoder is None else self.segmentation_decoder(x, features)

    def detect(self, features: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Scores and deltas by level, or None in a network without the detection decoder."""
        return None if self.detection_decoder is None else self.detection_decoder(features)

    def grade(self, source: torch.Tensor | None) -> torch.Tensor | None:
        """Grade logits (B, 2) from segmentation logits, or None in a network without the grading branch."""
        return None if self.grading_branch is None or source is None else self.grading_branch(source)

    def forward(self, x: torch.Tensor) -> MultiTaskOutput:
        """Image (B, 4, X, Y, Z) in the order T1, T1ce, T2, FLAIR to every task's output, in one encoder pass."""
        features = self.encode(x)
        segmentation = self.segment(x, features)
        return MultiTaskOutput(segmentation, self.grade(segmentation), self.detect(features), features)

    def multiply_out(self) -> None:
        """Fuse what the decoders can."""
        for decoder in (self.segmentation_decoder, self.detection_decoder):
            if decoder is not None:
                decoder.multiply_out()

    def last_shared(self) -> list[torch.Tensor]:
        """The deepest merge."""
        return [self.encoder.get_parameter("layers4.0.downsample.reduction.weight")]

    def costly_parts(self) -> list[nn.Module]:
        """Parts of the segmentation decoder at full and half resolution, which hold most of its activations."""
        return [] if self.segmentation_decoder is None else self.segmentation_decoder.fine_parts()


def build_mtmed3d(
    preset: str = "mtmed3d", feature_size: int = 24, tasks: Sequence[str] = TASKS, num_anchors: int = 5
) -> MultiTaskNetwork:
    """A network with fresh weights; see `MultiTaskNetwork` for the arguments."""
    return MultiTaskNetwork(preset, feature_size, tasks, num_anchors)
