"""Training patches cut from studies, at random places and with random contrast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training.examples import Example, synthetic_example
from MTMed3DCore.training.losses import Target

SEEN_SHARE = 0.5
"""Share of a lesion's box that a patch must hold for the box to count there, and of the tumour for its grade."""
BRAIN_SHARE = 0.9
"""Share of the brain that a patch must hold for the grade of a study whose tumour nobody has outlined.

The tumour may lie anywhere, and a grade beside a patch that does not show it teaches what is not so.
"""
TUMOUR_PATCHES = 2 / 3
"""Share of the patches of a study with tumour that are centred near it."""


@dataclass(frozen=True)
class Patch:
    """One training example: normalised image (4, X, Y, Z) float32 and its truth."""

    image: torch.Tensor
    target: Target

    @property
    def batch(self) -> torch.Tensor:
        """The image as a batch of one (1, 4, X, Y, Z)."""
        return self.image[None]


class Batch(Protocol):
    """What a training step takes: images (B, C, ...) and their truth."""

    @property
    def batch(self) -> torch.Tensor: ...

    @property
    def target(self) -> Any: ...


def region_channels(labels: torch.Tensor) -> torch.Tensor:
    """Labels (X, Y, Z) of 0, 1, 2, 4 to float regions (3, X, Y, Z): tumour core, whole tumour, enhancing."""
    return torch.stack([(labels == 1) | (labels == 4), labels > 0, labels == 4]).float()


def cut_patch(example: Example, size: int, rng: np.random.Generator, *, varied: bool = True) -> Patch:
    """A cube of `size` voxels of a study, in its middle where nobody knows what lies where.

    Args:
        example: the study and what is known of it; what is not known is None in the patch as well.
        size: side in voxels; a side of the study that is smaller is padded with zeros.
        rng: chooses the place, and how it is varied.
        varied: flip it left to right half of the time, and vary its contrast.
    """
    shape = np.array(example.image.shape[1:])
    room = np.maximum(shape - size, 0)
    if example.boxes and rng.random() < TUMOUR_PATCHES:
        box = example.boxes[rng.integers(len(example.boxes))]
        middle = (np.array(box.lower) + np.array(box.upper)) / 2
        start = np.round(middle - size / 2 + rng.uniform(-size / 6, size / 6, 3)).astype(int)
        start = np.clip(start, 0, room)
    elif example.labels is None and example.boxes is None:
        start = room // 2  # the study ends where its brain does, and this shows most of it
    else:
        start = rng.integers(0, room + 1)
    x, y, z = (slice(int(s), int(s) + size) for s in start)
    flipped = varied and rng.random() < 0.5
    image = _cube(example.image[:, x, y, z], size, flipped)
    regions = None if example.labels is None else _cube(region_channels(example.labels[x, y, z]), size, flipped)
    boxes = None if example.boxes is None else _visible_boxes(example.boxes, start, size)
    if boxes is not None and flipped:
        boxes[:, [0, 3]] = size - boxes[:, [3, 0]]
    grade = example.grade if _shows_the_tumour(example, image, regions, boxes) else None
    target = Target(
        None if regions is None else regions[None],
        None if boxes is None else torch.from_numpy(boxes).float(),
        grade,
    )
    return Patch(_vary(image, rng) if varied else image, target)


def _cube(channels: torch.Tensor, size: int, flipped: bool) -> torch.Tensor:
    """Channels (C, X, Y, Z) padded with zeros to a cube, flipped along the first axis if asked."""
    missing = [pad for side in reversed(channels.shape[1:]) for pad in (0, size - side)]
    padded = torch.nn.functional.pad(channels, missing)
    return padded.flip(1) if flipped else padded


def _shows_the_tumour(
    example: Example, image: torch.Tensor, regions: torch.Tensor | None, boxes: np.ndarray | None
) -> bool:
    """Whether a patch shows enough of the tumour to be graded."""
    if regions is not None and example.labels is not None:
        return float(regions[1].sum()) >= SEEN_SHARE * float((example.labels > 0).sum())
    if boxes is not None:
        return len(boxes) > 0
    seen, brain = (int((each != 0).any(0).sum()) for each in (image, example.image))
    return seen >= BRAIN_SHARE * brain


def _visible_boxes(lesions: list[VoxelBox], start: np.ndarray, size: int) -> np.ndarray:
    """Boxes (N, 6) of the patch, clipped to it, of the lesions that it shows well enough."""
    rows = np.array([box.to_list() for box in lesions]).reshape(-1, 6)
    return clip_boxes(rows - np.tile(start, 2), size)


def clip_boxes(boxes: np.ndarray, size: int) -> np.ndarray:
    """Boxes (N, 6) clipped to a patch; those of which it shows too little are left out."""
    clipped = np.clip(boxes, 0, size)
    volume, seen = (np.prod(rows[:, 3:] - rows[:, :3], axis=1) for rows in (boxes, clipped))
    return clipped[seen >= SEEN_SHARE * volume]


def _vary(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Contrast, brightness, curve and noise varied per sequence; what is exactly zero lies outside the brain."""
    brain = image != 0
    gain = torch.from_numpy(np.exp(0.12 * rng.standard_normal((4, 1, 1, 1)))).float()
    shift = torch.from_numpy(0.12 * rng.standard_normal((4, 1, 1, 1))).float()
    noisy = rng.random((4, 1, 1, 1)) < 0.25
    noise = torch.from_numpy(noisy * rng.uniform(0.02, 0.25, (4, 1, 1, 1))).float()
    field = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    bend = torch.from_numpy((rng.random((4, 1, 1, 1)) < 0.3) * 0.25 * rng.standard_normal((4, 1, 1, 1))).float()
    image = image * gain + shift
    return (image + bend * (torch.tanh(image) - 0.6 * image) + noise * field) * brain


class SyntheticPatches(IterableDataset[Patch]):
    """An endless stream of patches, reproducible for a seed and a number of worker processes.

    Args:
        seed: first study; each worker takes every n-th.
        spacing_mm: of the studies.
        shape: voxels of the studies.
        sides: of common and of wide patches in voxels.
        wide_share: share of the wide ones.
        per_study: patches cut from each study.
        family: of `MTMed3DCore.synthetic.FAMILIES`.
        device: where the studies are made.
    """

    def __init__(
        self,
        seed: int,
        spacing_mm: float,
        shape: tuple[int, int, int],
        sides: tuple[int, int],
        wide_share: float,
        per_study: int,
        family: str,
        device: str = "cpu",
    ) -> None:
        self.seed, self.spacing_mm, self.shape = seed, spacing_mm, shape
        self.sides, self.wide_share = sides, wide_share
        self.per_study, self.family, self.device = per_study, family, device

    def __iter__(self) -> Iterator[Patch]:
        worker = get_worker_info()
        seed, step = (self.seed, 1) if worker is None else (self.seed + worker.id, worker.num_workers)
        while True:
            study = make_study(seed, self.shape, self.spacing_mm, family=self.family, device=self.device)
            example = synthetic_example(study)
            rng = np.random.default_rng(seed)
            for _ in range(self.per_study):
                side = self.sides[int(rng.random() < self.wide_share)]
                yield cut_patch(example, side, rng)
            seed += step
