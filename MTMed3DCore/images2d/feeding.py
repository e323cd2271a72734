"""Which images come when, and how they are varied: a function of seed and number alone, as for brain patches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, radians, sin
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, one_hot
from torch.utils.data import Dataset

from MTMed3DCore.images2d.imagelist import ImageCase, Truths
from MTMed3DCore.images2d.pixels import read_image, read_mask, resize_image, resize_mask
from MTMed3DCore.images2d.settings import ROTATION
from MTMed3DCore.training.hybrid import BatchTarget

if TYPE_CHECKING:
    from MTMed3DCore.images2d.training import ImageTrainSettings

KEPT_EXAMPLES = 512
"""Resized images that each feeding process keeps in memory."""
DARKEST = -1.0


@dataclass(frozen=True, eq=False)
class Example:
    """An image at the working size, with its truth.

    Args:
        image: (C, S, S) float32.
        mask: (S, S), 0 for background, n for the n-th region; None where unknown.
        boxes: (N, 4) in pixels of the square; None where unknown.
        labels: (L,) of 0 and 1; None where unknown.
    """

    image: torch.Tensor
    mask: torch.Tensor | None
    boxes: torch.Tensor | None
    labels: torch.Tensor | None


@dataclass(frozen=True)
class ImageBatch:
    """Images (B, C, S, S) that go through the network together, and their truth."""

    batch: torch.Tensor
    target: BatchTarget


def load_example(case: ImageCase, truths: Truths, side: int, channels: int) -> Example:
    """Read a case and resize it.

    Raises:
        InputRefused: a file that cannot be read, or a mask with strange values.
    """
    image = read_image(case.image, channels)
    columns, rows = image.shape[1:]
    mask = None
    if case.mask is not None and truths.regions:
        mask = resize_mask(torch.from_numpy(read_mask(case.mask, truths.values)), (side, side))
    boxes = None
    if case.boxes is not None:
        scale = torch.tensor([side / columns, side / rows] * 2)
        boxes = torch.tensor(case.boxes, dtype=torch.float32).reshape(-1, 4) * scale
    labels = None
    if case.labels is not None and truths.labels:
        labels = torch.tensor([float(case.labels[name]) for name in truths.labels])
    return Example(resize_image(image, side), mask, boxes, labels)


def region_channels(mask: torch.Tensor, truths: Truths) -> torch.Tensor:
    """Numbers (S, S) to float channels (R, S, S), with background first where regions exclude each other."""
    channels = one_hot(mask.long(), len(truths.regions) + 1).permute(2, 0, 1).float()
    return channels if truths.region_activation == "softmax" else channels[1:]


def flipped(example: Example) -> Example:
    """Mirrored left to right."""
    side = example.image.shape[1]
    boxes = example.boxes
    if boxes is not None:
        boxes = torch.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], dim=1)
    mask = None if example.mask is None else example.mask.flip(0)
    return Example(example.image.flip(1), mask, boxes, example.labels)


def rotated(example: Example, degrees: float) -> Example:
    """Turned about its centre; what comes in from outside is as dark as the darkest pixel, and no region.

    Boxes would have to grow, so they are unknown afterwards.
    """
    c, s = cos(radians(degrees)), sin(radians(degrees))
    grid = affine_grid(torch.tensor([[[c, -s, 0.0], [s, c, 0.0]]]), [1, 1, *example.image.shape[1:]], False)
    image = grid_sample(example.image[None] - DARKEST, grid, align_corners=False)[0] + DARKEST
    mask = None
    if example.mask is not None:
        turned = grid_sample(example.mask[None, None].float(), grid, mode="nearest", align_corners=False)
        mask = turned[0, 0].to(example.mask.dtype)
    return Example(image, mask, None, example.labels)


class ImageBatches(Dataset[ImageBatch]):
    """Batch number i of a run; every image comes once an epoch, in an order that changes from epoch to epoch.

    Args:
        cases: of training.
        truths: of the list.
        settings: of the run.
    """

    def __init__(self, cases: Sequence[ImageCase], truths: Truths, settings: ImageTrainSettings) -> None:
        self.cases, self.truths, self.settings = list(cases), truths, settings
        self._kept: OrderedDict[str, Example] = OrderedDict()

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch

    def __getitem__(self, number: int) -> ImageBatch:
        count = self.settings.images
        examples = [self._varied(place) for place in range(number * count, (number + 1) * count)]
        regions = tuple(None if each.mask is None else region_channels(each.mask, self.truths) for each in examples)
        boxes, labels = tuple(each.boxes for each in examples), tuple(each.labels for each in examples)
        return ImageBatch(torch.stack([each.image for each in examples]), BatchTarget(regions, boxes, labels))

    def _varied(self, place: int) -> Example:
        settings = self.settings
        epoch, index = divmod(place, len(self.cases))
        order = np.random.default_rng((settings.seed, 0, epoch)).permutation(len(self.cases))
        example = self._example(self.cases[int(order[index])])
        rng = np.random.default_rng((settings.seed, 1, place))
        if rng.random() < settings.augmentation.get("flip", 0.0):
            example = flipped(example)
        if "detection" not in settings.tasks and rng.random() < settings.augmentation.get("rotate", 0.0):
            example = rotated(example, float(rng.uniform(-ROTATION, ROTATION)))
        return example

    def _example(self, case: ImageCase) -> Example:
        if case.id not in self._kept:
            self._kept[case.id] = load_example(case, self.truths, self.settings.patch, self.settings.channels)
            if len(self._kept) > KEPT_EXAMPLES:
                self._kept.popitem(last=False)
        return self._kept[case.id]
