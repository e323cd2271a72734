"""Brain masks: which source goes first, and how well our own method does."""

from __future__ import annotations

from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.geometry import Grid
from MTMed3DCore.preparation import prepare
from MTMed3DCore.preparation.extraction import extract_brain
from MTMed3DCore.preparation.record import read_mask, read_preparation
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.synthetic.head import HeadStudy, make_head_round
from MTMed3DCore.volume import Volume


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * int((a & b).sum()) / int(a.sum() + b.sum())


@pytest.fixture(scope="module")
def head() -> HeadStudy:
    study = make_study(21, (80, 96, 80), 2.0)
    return make_head_round(study.image.numpy(), study.brain.numpy(), study.grid, seed=2)


def test_a_head_keeps_its_brain_and_surrounds_it(head: HeadStudy) -> None:
    study = make_study(21, (80, 96, 80), 2.0)
    assert head.brain.sum() == study.brain.sum()
    assert head.image.min() >= 0
    outside = head.image[0][~head.brain]
    tissue = np.median(head.image[0][head.brain])
    assert (outside > 1.4 * tissue).mean() > 0.02  # fat
    assert (outside < 0.1 * tissue).mean() > 0.2  # air
    again = make_head_round(study.image.numpy(), study.brain.numpy(), study.grid, seed=2)
    np.testing.assert_array_equal(again.image, head.image)


def test_a_head_needs_a_brain() -> None:
    grid = Grid((8, 8, 8), np.eye(4))
    with pytest.raises(WrongUse, match="brain"):
        make_head_round(np.ones((4, 8, 8, 8)), np.zeros((8, 8, 8), bool), grid)


def test_our_method_finds_the_brain_of_a_synthetic_head(head: HeadStudy) -> None:
    found = extract_brain(head.sequences, head.grid)
    assert found is not None
    assert dice(found, head.brain) > 0.95


def test_our_method_claims_no_brain_where_there_is_none() -> None:
    noise = np.random.default_rng(0)
    arrays = {name: noise.uniform(0, 100, (60, 60, 60)).astype(np.float32) for name in SEQUENCES}
    assert extract_brain(arrays, Grid((60, 60, 60), np.diag([2.0, 2.0, 2.0, 1.0]))) is None


def stripped_study() -> SimpleNamespace:
    study = make_study(3, (40, 48, 40), 4.0)
    sequences = {name: Volume(image.numpy(), study.grid) for name, image in zip(SEQUENCES, study.image, strict=True)}
    return SimpleNamespace(grid=study.grid, sequences=sequences, brain=study.brain.numpy())


def test_the_users_mask_goes_before_a_stripped_study() -> None:
    study = stripped_study()
    smaller = study.brain.copy()
    smaller[20:] = False
    prepared = prepare(study, spacing_mm=4.0, mask=smaller)
    assert prepared.record.brain_source == "given"
    np.testing.assert_array_equal(prepared.record.brain, smaller)
    assert prepare(study, spacing_mm=4.0).record.brain_source == "stripped"


def test_a_stripped_study_is_neither_registered_nor_masked_anew() -> None:
    record = prepare(stripped_study(), spacing_mm=4.0).record
    assert {each.verdict for each in record.registrations} == {"not-needed"}
    assert not any(each.moves for each in record.registrations)


def test_masks_that_mark_nothing_of_the_t1ce_are_refused(tmp_path) -> None:
    array = np.zeros((10, 10, 10), np.uint8)
    array[:3] = 1
    affine = np.eye(4)
    affine[:3, 3] = 500
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "far.nii.gz")
    with pytest.raises(InputRefused, match="marks no voxel"):
        read_mask(tmp_path / "far.nii.gz", Grid((10, 10, 10), np.eye(4)))


def test_a_preparation_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(InputRefused) as refusal:
        read_preparation(tmp_path, Grid((10, 10, 10), np.eye(4)))
    assert refusal.value.code == "preparation-missing"
