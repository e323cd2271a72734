"""What training, inference and bundles ask of a network, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from MTMed3DCore.errors import WrongUse

Level = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class MultiTaskOutput:
    """Everything that one pass gives; a task that the network was built without is None.

    The spatial axes ``(X, Y, Z)`` are ``(X, Y)`` in a network of two dimensions.

    Args:
        segmentation: logits (B, R, X, Y, Z) of the regions; in brain studies core, whole and enhancing tumour.
        grade: logits (B, L) of the labels; in brain studies LGG and HGG.
        detection: for each level, score logits (B, A, x, y, z) and box deltas (B, 6A, x, y, z); 4A in two dimensions.
        features: the encoder's levels, fine to coarse.
    """

    segmentation: torch.Tensor | None
    grade: torch.Tensor | None
    detection: list[Level] | None
    features: list[torch.Tensor]


class TaskNetwork(nn.Module, ABC):
    """A shared encoder with a decoder for each of some tasks.

    Attributes:
        family: its name in the registry.
        tasks: what it was built for, among `MTMed3DCore.networks.TASKS`.
        grades_image: `grade` reads an image; otherwise it reads segmentation logits.
        encoder: what all tasks share.
        level_strides: of the encoder's levels, if what a level says of a place depends on the places around it alone,
            so that levels of a whole volume may be cut into windows; None if not.
    """

    family: ClassVar[str] = ""
    grades_image: ClassVar[bool] = False
    level_strides: ClassVar[tuple[int, ...] | None] = None
    tasks: tuple[str, ...]
    encoder: nn.Module

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments of `MTMed3DCore.networks.build_network` that make this network again, as JSON types."""

    @abstractmethod
    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image (B, C, X, Y, Z) to the encoder's levels.

        Raises:
            ValueError: an image of another number of channels or axes, or with sides that do not fit the strides.
        """

    @abstractmethod
    def segment(self, x: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Logits (B, R, X, Y, Z) of an image and its levels, or None in a network without this task."""

    def detect(self, features: Sequence[torch.Tensor]) -> list[Level] | None:
        """Scores and deltas by level, or None in a network without this task."""
        return None

    @abstractmethod
    def grade(self, source: torch.Tensor | None) -> torch.Tensor | None:
        """Logits (B, L), or None in a network without this task.

        Args:
            source: an image where `grades_image`, segmentation logits otherwise.
        """

    @abstractmethod
    def last_shared(self) -> list[torch.Tensor]:
        """The weights of the last layer that every task reads, on which GradNorm measures gradients."""

    def multiply_out(self) -> None:
        """Make ready for use without gradients what pays to be computed once; training drops it again."""
        return

    def costly_parts(self) -> list[nn.Module]:
        """Parts at fine resolution outside the transformer blocks; with gradient checkpointing they keep nothing."""
        return []


class ParallelTaskNetwork(TaskNetwork):
    """A network in which every task's decoder reads the encoder alone; labels come from the image's levels.

    Args:
        config: every argument of the family's builder, as JSON types; ``spatial_dims``, ``in_channels`` and ``tasks``
            are among them.
    """

    grades_image = True
    stride: ClassVar[int]
    """Of the deepest level."""
    segmentation_decoder: nn.Module | None
    detection_decoder: nn.Module | None
    grading_head: nn.Module | None

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._config = dict(config)
        self.tasks = tuple(config["tasks"])
        self.detection_decoder = None

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `MTMed3DCore.networks.build_network`."""
        return {"family": self.family, **self._config}

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Image with sides that are multiples of the stride to the encoder's levels."""
        check_image(x, self._config["spatial_dims"], self._config["in_channels"], self.stride)
        levels: list[torch.Tensor] = self.encoder(x)
        return levels

    def detect(self, features: Sequence[torch.Tensor]) -> list[Level] | None:
        """Scores and deltas by level."""
        return None if self.detection_decoder is None else self.detection_decoder(features)

    def classify(self, features: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Logits (B, L) of an image whose levels are known."""
        return None if self.grading_head is None else self.grading_head(features)

    def grade(self, source: torch.Tensor | None) -> torch.Tensor | None:
        """Logits (B, L) of an image."""
        return None if source is None or self.grading_head is None else self.classify(self.encode(source))

    def forward(self, x: torch.Tensor) -> MultiTaskOutput:
        """Image (B, C, X, Y, Z) to every task's output, in one encoder pass."""
        features = self.encode(x)
        return MultiTaskOutput(self.segment(x, features), self.classify(features), self.detect(features), features)


def checked_config(
    title: str, config: Mapping[str, Any], tasks: Sequence[str], own: Mapping[str, tuple[bool, str]]
) -> dict[str, Any]:
    """The configuration of a `ParallelTaskNetwork`, with its tasks in their order.

    Args:
        title: of the family, with its article.
        config: arguments of its builder.
        tasks: what the family can do.
        own: for each argument that other families do not have, whether its value holds and what to give instead.

    Raises:
        WrongUse: ``network-setting``, naming the setting and its value.
    """
    counted = ("in_channels", "regions", "labels", "num_anchors")
    checks = {
        "spatial_dims": (config["spatial_dims"] in (2, 3), "2 or 3"),
        "tasks": (bool(config["tasks"]) and set(config["tasks"]) <= set(tasks), f"some of {', '.join(tasks)}"),
        "window": (config["window"] >= 2, "at least 2"),
        **{name: (config[name] >= 1, "at least 1") for name in counted if name in config},
        **own,
    }
    for name, (holds, wanted) in checks.items():
        if not holds:
            text = f"{name} of {title} cannot be {config[name]!r}."
            raise WrongUse("network-setting", text, f"Give {wanted}.")
    return {**config, "tasks": [task for task in tasks if task in config["tasks"]]}


def check_image(x: torch.Tensor, spatial_dims: int, channels: int, stride: int) -> None:
    """Refuse an image that a network cannot take.

    Raises:
        ValueError: another number of axes or channels, or a side that is no multiple of `stride`.
    """
    if x.ndim != spatial_dims + 2 or x.shape[1] != channels or any(side % stride for side in x.shape[2:]):
        axes = ", ".join("XYZ"[:spatial_dims])
        wanted = f"(B, {channels}, {axes}) with sides that are multiples of {stride}"
        raise ValueError(f"The network takes {wanted}, got {tuple(x.shape)}.")
