"""Augmentation varies patches without parting them from their truth, and is a function of the generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.training.augmentation import Augmentation
from MTMed3DCore.training.losses import Target
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.settings import AUGMENTATION, CaseSettings

INTENSITY = sorted(set(AUGMENTATION) - {"flip", "affine"})


@pytest.fixture(scope="module")
def patch() -> Patch:
    """A lesion that fills its box as an ellipsoid does, off the middle, in a brain that does not reach the border."""
    places = np.stack(np.meshgrid(*[np.arange(64)] * 3, indexing="ij"), axis=-1)
    lesion = (((places - [25, 32, 30]) / [12, 7, 9]) ** 2).sum(-1) <= 1
    image = torch.rand(4, 64, 64, 64, generator=torch.Generator().manual_seed(0)) + 1
    image[:, :4] = 0
    image[1] += 3 * torch.from_numpy(lesion)
    regions = torch.from_numpy(np.stack([lesion] * 3)).float()[None]
    return Patch(image, Target(regions, torch.tensor([VoxelBox.around(lesion).to_list()]), 1))


def varied(patch: Patch, chances: dict[str, float], seed: int = 3) -> Patch:
    return Augmentation(chances)(patch, np.random.default_rng(seed))


def test_a_flip_mirrors_image_regions_and_box_from_left_to_right_exactly(patch):
    flipped = varied(patch, {"flip": 1.0})
    assert torch.equal(flipped.image, patch.image.flip(1))
    assert torch.equal(flipped.target.regions, patch.target.regions.flip(2))
    x0, y0, z0, x1, y1, z1 = patch.target.boxes[0].tolist()
    assert flipped.target.boxes[0].tolist() == [64 - x1, y0, z0, 64 - x0, y1, z1]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_and_regions_follow_a_rotation_and_a_change_of_size(patch, seed):
    moved = varied(patch, {"affine": 1.0, "flip": 0.5}, seed)
    lesion = moved.target.regions[0, 1].numpy() > 0.5
    assert not torch.equal(moved.target.regions, patch.target.regions)
    np.testing.assert_allclose(moved.target.boxes[0].numpy(), VoxelBox.around(lesion).to_list(), atol=1.0)
    bright = moved.image[1] > 3.5
    assert (bright.numpy() & lesion).sum() > 0.9 * lesion.sum()


@pytest.mark.parametrize("kind", INTENSITY)
def test_each_kind_of_intensity_changes_the_sequences_but_not_what_lies_outside_the_brain_nor_the_truth(patch, kind):
    changed = varied(patch, {kind: 1.0})
    assert all(not torch.equal(changed.image[i], patch.image[i]) for i in range(4))
    assert (changed.image[:, :4] == 0).all()
    assert torch.isfinite(changed.image).all()
    assert torch.equal(changed.target.regions, patch.target.regions)
    assert torch.equal(changed.target.boxes, patch.target.boxes)
    apart = [(changed.image[i, 4:] / patch.image[i, 4:]).mean() for i in range(4)]
    assert len({round(float(value), 6) for value in apart}) == 4  # each sequence has its own


def test_the_same_generator_gives_the_same_patch_and_another_gives_another(patch):
    first, again, other = (varied(patch, AUGMENTATION, seed) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)
    assert type(first.image) is torch.Tensor


def test_what_is_not_known_stays_unknown_and_no_boxes_stay_no_boxes(patch):
    bare = varied(Patch(patch.image, Target(None, None, None)), AUGMENTATION)
    assert (bare.target.regions, bare.target.boxes, bare.target.grade) == (None, None, None)
    empty = varied(Patch(patch.image, Target(None, torch.zeros(0, 6), 0)), {"affine": 1.0})
    assert empty.target.boxes.shape == (0, 6)


def test_without_chances_a_patch_stays_as_it_is_and_impossible_chances_are_refused(patch):
    assert varied(patch, {}) is patch
    with pytest.raises(WrongUse, match="augmentation"):
        CaseSettings(augmentation={"elastic": 0.5})
    with pytest.raises(WrongUse, match="augmentation"):
        CaseSettings(augmentation={"flip": 1.5})
