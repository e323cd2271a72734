"""The three task losses.

Segmentation: Dice plus focal. Detection: RetinaNet's focal and smooth L1 over ATSS matches (Zhang et al., arXiv
1912.02424), normalised by the positives, as the focal-loss paper asks and the published code does not. Grading: focal.
A task without labels for a study gives a loss of exactly zero that still reaches every parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou
from monai.losses import DiceLoss, FocalLoss
from torch import nn
from torch.nn.functional import smooth_l1_loss

from MTMed3DCore.networks import MultiTaskOutput
from MTMed3DCore.training.anchors import LevelAnchors, flatten_maps

DICE_SMOOTH = 20.0
"""Voxels added above and below the Dice fraction: with them an empty class charges every false positive."""
FOCAL_GAMMA = 2.0
FOCAL_ALPHA = 0.25
"""Weight of the positive anchors; the negatives have the rest."""
FOCAL_WEIGHT = 8.0
"""Brings the focal term, a mean over mostly easy voxels, to the size of the Dice term."""
BOX_BETA = 1.0 / 9.0
ATSS_CANDIDATES = 4


@dataclass(frozen=True)
class Target:
    """The truth of one training patch.

    Args:
        regions: (1, 3, X, Y, Z) float: tumour core, whole tumour, enhancing; None when the study has no labels.
        boxes: (N, 6) half-open voxel boxes of the patch, N >= 0; None when the study has no boxes.
        grade: 0 LGG, 1 HGG; None when unknown or when the patch does not show the tumour.
    """

    regions: torch.Tensor | None
    boxes: torch.Tensor | None
    grade: int | None

    def knows(self, task: str) -> bool:
        """Whether there is a truth for a task."""
        known = {"segmentation": self.regions, "detection": self.boxes, "grading": self.grade}
        return known[task] is not None

    def to(self, device: torch.device) -> Target:
        """The same truth on another device."""
        regions = None if self.regions is None else self.regions.to(device)
        return Target(regions, None if self.boxes is None else self.boxes.to(device), self.grade)


class SegmentationLoss(nn.Module):
    """Dice over each region plus focal over all voxels."""

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, smooth_nr=DICE_SMOOTH, smooth_dr=DICE_SMOOTH)
        self.focal = FocalLoss(gamma=FOCAL_GAMMA)

    def forward(self, logits: torch.Tensor, regions: torch.Tensor | None) -> torch.Tensor:
        """Logits (B, 3, X, Y, Z) and regions of the same shape, or None, to a scalar."""
        if regions is None:
            return 0.0 * logits.float().sum()
        loss: torch.Tensor = self.dice(logits.float(), regions) + FOCAL_WEIGHT * self.focal(logits.float(), regions)
        return loss


def _overlap(boxes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """IoU (N, M) of two sets of boxes."""
    return torch.as_tensor(box_iou(boxes, anchors))


class DetectionLoss(nn.Module):
    """RetinaNet's loss over the anchors of one patch.

    Args:
        anchor_shapes: base shapes in voxels of the finest level.
    """

    def __init__(self, anchor_shapes: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.anchors = LevelAnchors(anchor_shapes)
        self.matcher = ATSSMatcher(num_candidates=ATSS_CANDIDATES, similarity_fn=_overlap, center_in_gt=False)
        self.values = 2 * len(anchor_shapes[0]) if len(anchor_shapes) else 6  # numbers of a box
        self.coder = BoxCoder(weights=(1.0,) * self.values)
        # MONAI's own sum divides by the number of anchors when there are no spatial dimensions.
        self.focal = FocalLoss(gamma=FOCAL_GAMMA, alpha=FOCAL_ALPHA, reduction="none")

    def forward(
        self, image: torch.Tensor, detection: list[tuple[torch.Tensor, torch.Tensor]], boxes: torch.Tensor | None
    ) -> torch.Tensor:
        """Image (1, C, X, Y, Z), maps by level and boxes (N, 6), or None, to a scalar; boxes (N, 4) of images."""
        scores = flatten_maps([s for s, _ in detection], 1)[0].float()
        deltas = flatten_maps([b for _, b in detection], self.values)[0].float()
        if boxes is None:
            return 0.0 * (scores.sum() + deltas.sum())
        anchors, places = self.anchors(image, [s for s, _ in detection])
        positive = torch.zeros(len(anchors), dtype=torch.bool, device=scores.device)
        matches = positive.long()
        if len(boxes):
            _, matches = self.matcher.compute_matches(boxes, anchors, places, self.anchors.per_place)
            positive = matches >= 0
        count = positive.sum().clamp(min=1)
        loss: torch.Tensor = self.focal(scores, positive.float()[:, None]).sum() / count
        if not positive.any():
            return loss + 0.0 * deltas.sum()
        wanted = self.coder.encode_single(boxes[matches[positive]], anchors[positive])
        return loss + smooth_l1_loss(deltas[positive], wanted, beta=BOX_BETA, reduction="sum") / (self.values * count)


class GradingLoss(nn.Module):
    """Focal loss over the two grades."""

    def __init__(self) -> None:
        super().__init__()
        self.focal = FocalLoss(gamma=FOCAL_GAMMA, use_softmax=True, to_onehot_y=True)

    def forward(self, logits: torch.Tensor, grade: int | None) -> torch.Tensor:
        """Logits (1, 2) and the grade, or None, to a scalar."""
        if grade is None:
            return 0.0 * logits.float().sum()
        loss: torch.Tensor = self.focal(logits.float(), torch.tensor([[grade]], device=logits.device))
        return loss


class MultiTaskLoss(nn.Module):
    """The losses of the tasks that a network has.

    Args:
        tasks: as `MTMed3DCore.networks.TASKS`.
        anchor_shapes: base shapes in voxels of the finest level.
    """

    def __init__(self, tasks: Sequence[str], anchor_shapes: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.segmentation = SegmentationLoss()
        self.detection = DetectionLoss(anchor_shapes)
        self.grading = GradingLoss()

    def forward(self, image: torch.Tensor, output: MultiTaskOutput, target: Target) -> dict[str, torch.Tensor]:
        """One scalar for each task, keyed by task."""
        losses: dict[str, torch.Tensor] = {}
        if "segmentation" in self.tasks and output.segmentation is not None:
            losses["segmentation"] = self.segmentation(output.segmentation, target.regions)
        if "detection" in self.tasks and output.detection is not None:
            losses["detection"] = self.detection(image, output.detection, target.boxes)
        if "grading" in self.tasks and output.grade is not None:
            losses["grading"] = self.grading(output.grade, target.grade)
        return losses
