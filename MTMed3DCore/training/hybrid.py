"""The hybrid loss of ResFormer and MTMedFormer, for volumes and images.

Segmentation: Dice plus focal of gamma 2, by softmax over exclusive regions and background or by a sigmoid for each
region (Bui et al., arXiv 2412.00351). Classification: the multi-label soft margin, with a weight for each label where
one is given, or cross-entropy over exclusive labels. Detection: RetinaNet's, as for MTMed3D. How they are weighed is
the balance's part: the registry holds ``L_seg + 0.25 L_cls`` for ResFormer, and equal weights for MTMedFormer, whose
own terms nobody has published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.losses import DiceLoss, FocalLoss
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from MTMed3DCore.networks import MultiTaskOutput
from MTMed3DCore.training.losses import DICE_SMOOTH, FOCAL_GAMMA, DetectionLoss, Target

GRADES = 2


@dataclass(frozen=True)
class BatchTarget:
    """The truth of a batch of images; what is not known of one is None.

    Args:
        regions: (R, X, Y) float by image, one channel for each of the network's.
        boxes: (N, 4) half-open boxes in pixels by image.
        labels: (L,) float by image, 0 or 1.
    """

    regions: tuple[torch.Tensor | None, ...]
    boxes: tuple[torch.Tensor | None, ...]
    labels: tuple[torch.Tensor | None, ...]

    def knows(self, task: str) -> bool:
        """Whether any image has a truth for a task."""
        known = {"segmentation": self.regions, "detection": self.boxes, "grading": self.labels}
        return any(each is not None for each in known[task])

    def to(self, device: torch.device) -> BatchTarget:
        """The same truth on another device."""

        def moved(parts: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
            return tuple(None if part is None else part.to(device) for part in parts)

        return BatchTarget(moved(self.regions), moved(self.boxes), moved(self.labels))


def as_batch(target: Target) -> BatchTarget:
    """The truth of one brain patch as a batch of one; its grade as one of two labels."""
    regions = None if target.regions is None else target.regions[0]
    labels = None if target.grade is None else torch.eye(GRADES)[target.grade]
    return BatchTarget((regions,), (target.boxes,), (labels,))


class HybridLoss(nn.Module):
    """One loss for each task of a network; a task without a truth in a batch gives exactly zero.

    Args:
        tasks: as `MTMed3DCore.networks.TASKS`.
        anchor_shapes: base shapes in voxels or pixels of the finest level; unused without detection.
        region_activation: ``"sigmoid"`` or ``"softmax"`` over the channels of the segmentation.
        label_activation: the same over the labels.
        label_weights: of the labels with ``"sigmoid"``; equal where empty.
        focal: add the focal term; the published loss for one binary region is Dice alone.
    """

    label_weights: torch.Tensor | None

    def __init__(
        self,
        tasks: Sequence[str],
        anchor_shapes: Sequence[Sequence[float]],
        *,
        region_activation: str = "sigmoid",
        label_activation: str = "softmax",
        label_weights: Sequence[float] = (),
        focal: bool = True,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        softmax = region_activation == "softmax"
        self.dice = DiceLoss(sigmoid=not softmax, softmax=softmax, smooth_nr=DICE_SMOOTH, smooth_dr=DICE_SMOOTH)
        self.focal = FocalLoss(gamma=FOCAL_GAMMA, use_softmax=softmax) if focal else None
        self.detection = DetectionLoss(anchor_shapes) if "detection" in self.tasks else None
        self.exclusive = label_activation == "softmax"
        self.register_buffer("label_weights", torch.tensor(label_weights) if len(label_weights) else None)

    def forward(
        self, image: torch.Tensor, output: MultiTaskOutput, target: Target | BatchTarget
    ) -> dict[str, torch.Tensor]:
        """Image (B, C, X, Y) or (1, C, X, Y, Z), a network's output and the truth to one scalar for each task."""
        truth = target if isinstance(target, BatchTarget) else as_batch(target)
        losses: dict[str, torch.Tensor] = {}
        if "segmentation" in self.tasks and output.segmentation is not None:
            losses["segmentation"] = self._segmentation(output.segmentation.float(), truth.regions)
        if self.detection is not None and output.detection is not None:
            losses["detection"] = self._detection(image, output.detection, truth.boxes)
        if "grading" in self.tasks and output.grade is not None:
            losses["grading"] = self._labels(output.grade.float(), truth.labels)
        return losses

    def _segmentation(self, logits: torch.Tensor, regions: Sequence[torch.Tensor | None]) -> torch.Tensor:
        chosen, wanted = _known(logits, regions)
        if wanted is None:
            return 0.0 * logits.sum()
        loss: torch.Tensor = self.dice(chosen, wanted)
        return loss if self.focal is None else loss + self.focal(chosen, wanted)

    def _labels(self, logits: torch.Tensor, labels: Sequence[torch.Tensor | None]) -> torch.Tensor:
        chosen, wanted = _known(logits, labels)
        if wanted is None:
            return 0.0 * logits.sum()
        if self.exclusive:
            return cross_entropy(chosen, wanted)
        return binary_cross_entropy_with_logits(chosen, wanted, weight=self.label_weights)

    def _detection(
        self,
        image: torch.Tensor,
        detection: list[tuple[torch.Tensor, torch.Tensor]],
        boxes: Sequence[torch.Tensor | None],
    ) -> torch.Tensor:
        assert self.detection is not None
        losses = []
        for index, each in enumerate(boxes):
            maps = [(scores[index : index + 1], deltas[index : index + 1]) for scores, deltas in detection]
            losses.append(self.detection(image[index : index + 1], maps, each))
        return torch.stack(losses).sum() / max(1, sum(each is not None for each in boxes))


def _known(logits: torch.Tensor, truths: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of a batch that have a truth, and the truths."""
    there = [index for index, each in enumerate(truths) if each is not None]
    if not there:
        return logits, None
    wanted = torch.stack([each for each in truths if each is not None]).to(logits)
    return logits[there], wanted
