"""Training patches cut from synthetic studies that are made while training runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from MTMed3DCore.preparation import normalise_tensor
from MTMed3DCore.synthetic import SyntheticStudy, make_study
from MTMed3DCore.training.losses import Target

SEEN_SHARE = 0.5
"""Share of a lesion's box that a patch must hold for the box to count there, and of the tumour for its grade."""
TUMOUR_PATCHES = 2 / 3
"""Share of the patches of a study with tumour that are centred near it."""


@dataclass(frozen=True)
class Patch:
    """One training example: normalised image (4, X, Y, Z) float32 and its truth."""

    image: torch.Tensor
    target: Target


def region_channels(labels: torch.Tensor) -> torch.Tensor:
    """Labels (X, Y, Z) of 0, 1, 2, 4 to float regions (3, X, Y, Z): tumour core, whole tumour, enhancing."""
    return torch.stack([(labels == 1) | (labels == 4), labels > 0, labels == 4]).float()


def cut_patch(study: SyntheticStudy, image: torch.Tensor, size: int, rng: np.random.Generator) -> Patch:
    """A cube of `size` voxels of a study, flipped left to right half of the time.

    Args:
        study: the truth.
        image: the study's normalised image (4, X, Y, Z).
        size: side in voxels; a side of the study that is smaller is padded with zeros.
        rng: chooses place and flip.
    """
    shape = np.array(image.shape[1:])
    room = np.maximum(shape - size, 0)
    if study.boxes and rng.random() < TUMOUR_PATCHES:
        box = study.boxes[rng.integers(len(study.boxes))]
        middle = (np.array(box.lower) + np.array(box.upper)) / 2
        start = np.round(middle - size / 2 + rng.uniform(-size / 6, size / 6, 3)).astype(int)
        start = np.clip(start, 0, room)
    else:
        start = rng.integers(0, room + 1)
    x, y, z = (slice(int(s), int(s) + size) for s in start)
    labels = study.labels[x, y, z]
    patch, regions = image[:, x, y, z], region_channels(labels)
    missing = [pad for side in reversed(labels.shape) for pad in (0, size - side)]
    patch, regions = (torch.nn.functional.pad(t, missing) for t in (patch, regions))
    boxes = _visible_boxes(study, start, size)
    seen = float(regions[1].sum()) >= SEEN_SHARE * float((study.labels > 0).sum())
    if rng.random() < 0.5:
        patch, regions = patch.flip(1), regions.flip(1)
        boxes[:, [0, 3]] = size - boxes[:, [3, 0]]
    patch = _vary(patch, rng)
    target = Target(regions[None], torch.from_numpy(boxes).float(), study.grade if seen else None)
    return Patch(patch, target)


def _visible_boxes(study: SyntheticStudy, start: np.ndarray, size: int) -> np.ndarray:
    """Boxes (N, 6) of the patch, clipped to it, of the lesions that it shows well enough."""
    kept = []
    for box in study.boxes:
        whole = np.array(box.to_list()) - np.tile(start, 2)
        clipped = np.clip(whole, 0, size)
        if np.prod(np.maximum(clipped[3:] - clipped[:3], 0)) >= SEEN_SHARE * box.size.prod():
            kept.append(clipped)
    return np.array(kept).reshape(-1, 6)


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
    ) -> None:
        self.seed, self.spacing_mm, self.shape = seed, spacing_mm, shape
        self.sides, self.wide_share = sides, wide_share
        self.per_study, self.family = per_study, family

    def __iter__(self) -> Iterator[Patch]:
        worker = get_worker_info()
        seed, step = (self.seed, 1) if worker is None else (self.seed + worker.id, worker.num_workers)
        while True:
            study = make_study(seed, self.shape, self.spacing_mm, family=self.family)
            image = normalise_tensor(study.image, study.brain)
            rng = np.random.default_rng(seed)
            for _ in range(self.per_study):
                side = self.sides[int(rng.random() < self.wide_share)]
                yield cut_patch(study, image, side, rng)
            seed += step
