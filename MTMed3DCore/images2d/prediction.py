"""What a network says of one image, at the image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import clip_boxes_to_image, non_max_suppression
from torch.nn.functional import interpolate

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.findings import RESEARCH_USE
from MTMed3DCore.images2d.imagelist import Box
from MTMed3DCore.images2d.pixels import read_image, resize_image
from MTMed3DCore.images2d.settings import ImageSettings
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.training.anchors import LevelAnchors, flatten_maps

CANDIDATES = 1000
"""Boxes that enter the suppression, as in RetinaNet."""
SCHEMA = "mtmed3d.image-findings/1"


@dataclass(frozen=True, eq=False)
class ImageFindings:
    """The result of one image.

    Args:
        mask: uint8 (X, Y): 0 for background, n for the n-th region; None from a network that does not segment. Where
            regions do not exclude each other, a pixel has the likeliest of those that it belongs to.
        boxes: best first.
        scores: of the boxes, 0 to 1.
        labels: probability by name; empty from a network that does not classify.
    """

    mask: npt.NDArray[np.uint8] | None
    boxes: tuple[Box, ...]
    scores: tuple[float, ...]
    labels: dict[str, float]


def predict(network: TaskNetwork, settings: ImageSettings, path: Path, device: str | torch.device) -> ImageFindings:
    """Read an image and run a network on it.

    Args:
        network: in evaluation mode on `device`.
        settings: of its bundle.

    Raises:
        InputRefused: an image that cannot be read.
        ModelRefused: outputs that are not finite.
    """
    image = read_image(path, settings.channels)
    columns, rows = (int(side) for side in image.shape[1:])
    with torch.inference_mode():
        output = network(resize_image(image, settings.side)[None].to(device))
        given = [each for each in (output.segmentation, output.grade) if each is not None]
        given += [each for level in output.detection or () for each in level]
        if not all(torch.isfinite(each).all() for each in given):
            text = f"The network's output for {path} is not finite."
            raise ModelRefused("output-not-finite", text, "The model is damaged; install it again.")
        mask = None
        if output.segmentation is not None:
            mask = _mask(output.segmentation.float().cpu(), settings, (columns, rows))
        boxes, scores = torch.zeros((0, 4)), torch.zeros(0)
        if output.detection is not None:
            maps = [(scores.float().cpu(), deltas.float().cpu()) for scores, deltas in output.detection]
            boxes, scores = find_boxes(maps, settings)
        labels = {} if output.grade is None else _labels(output.grade[0].float().cpu(), settings)
    own = boxes * torch.tensor([columns / settings.side, rows / settings.side] * 2)
    found = tuple((b[0], b[1], b[2], b[3]) for b in own.tolist())
    return ImageFindings(mask, found, tuple(scores.tolist()), labels)


def find_boxes(
    maps: Sequence[tuple[torch.Tensor, torch.Tensor]], settings: ImageSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) in pixels of the square and scores (N,), best first, of an image's maps by level."""
    square = torch.empty(1, 1, settings.side, settings.side)
    anchors, _ = LevelAnchors(settings.anchor_shapes, settings.anchor_scales)(square, [scores for scores, _ in maps])
    scores = torch.sigmoid(flatten_maps([scores for scores, _ in maps], 1)[0, :, 0])
    deltas = flatten_maps([deltas for _, deltas in maps], 4)[0]
    best, rank = scores.topk(min(CANDIDATES, len(scores)))
    rank, best = rank[best > settings.score_threshold], best[best > settings.score_threshold]
    decoded = BoxCoder((1.0,) * 4).decode_single(deltas[rank], anchors[rank])
    inside, kept = clip_boxes_to_image(decoded, (settings.side, settings.side), remove_empty=True)
    boxes, best = torch.as_tensor(inside), best[torch.as_tensor(kept)]
    if not len(boxes):
        return boxes.reshape(-1, 4), best
    keep = torch.as_tensor(non_max_suppression(boxes, best, settings.nms_iou, settings.max_detections)).long()
    return boxes[keep], best[keep]


def _mask(logits: torch.Tensor, settings: ImageSettings, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    exclusive = settings.truths.region_activation == "softmax"
    probabilities = torch.softmax(logits, dim=1) if exclusive else torch.sigmoid(logits)
    own = interpolate(probabilities, size=shape, mode="bilinear", align_corners=False)[0]
    if exclusive:
        return own.argmax(dim=0).numpy().astype(np.uint8)
    best, number = own.max(dim=0)
    return torch.where(best >= settings.region_threshold, number + 1, 0).numpy().astype(np.uint8)


def _labels(logits: torch.Tensor, settings: ImageSettings) -> dict[str, float]:
    exclusive = settings.truths.label_activation == "softmax"
    probabilities = torch.softmax(logits, dim=0) if exclusive else torch.sigmoid(logits)
    return dict(zip(settings.truths.labels, probabilities.tolist(), strict=True))


def write_mask(mask: npt.NDArray[np.uint8], settings: ImageSettings, path: Path) -> None:
    """Write a mask as PNG, with the values that the regions had in training."""
    values = np.array([0, *settings.truths.values], dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(values[mask].T)), str(path))


def document(findings: ImageFindings, settings: ImageSettings, image: Path, model: dict[str, Any]) -> dict[str, Any]:
    """The findings as JSON types (schema ``mtmed3d.image-findings/1``)."""
    areas = {}
    if findings.mask is not None:
        counts = np.bincount(findings.mask.ravel(), minlength=len(settings.truths.regions) + 1)
        areas = {name: int(count) for name, count in zip(settings.truths.regions, counts[1:], strict=True)}
    return {
        "schema": SCHEMA,
        "notice": RESEARCH_USE,
        "image": str(image),
        "model": model,
        "area_pixels": areas,
        "boxes": [
            {"box": list(box), "score": score} for box, score in zip(findings.boxes, findings.scores, strict=True)
        ],
        "labels": findings.labels,
    }
