"""Synthetic studies: reproducible, varied, and physically right in their contrasts."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.synthetic import Family, SyntheticStudy, make_study, write_study
from MTMed3DCore.synthetic.anatomy import Head, Tissue, make_head, make_tissue
from MTMed3DCore.synthetic.contrast import coil_sensitivity
from MTMed3DCore.synthetic.fields import Lattice, Random
from MTMed3DCore.synthetic.lesions import plan_lesions

SHAPE, SPACING = (56, 64, 56), 3.0
T1, T1CE, T2, FLAIR = range(4)


@pytest.fixture(scope="module")
def studies() -> list[SyntheticStudy]:
    return [make_study(seed, SHAPE, SPACING) for seed in range(40)]


def test_a_seed_gives_the_same_study_again_and_the_next_seed_another():
    first, again, other = (make_study(seed, SHAPE, SPACING) for seed in (7, 7, 8))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.brain, other.brain)


def test_families_differ_and_an_unknown_one_is_refused():
    default, held_out = (make_study(7, SHAPE, SPACING, family=name) for name in ("default", "held_out"))
    assert not torch.equal(default.image, held_out.image)
    with pytest.raises(WrongUse, match="nowhere"):
        make_study(7, SHAPE, SPACING, family="nowhere")


def test_all_kinds_of_study_occur(studies):
    grades = [study.grade for study in studies]
    assert {None, 0, 1} == set(grades)
    assert max(len(study.boxes) for study in studies) >= 2
    sizes = [float((box.size * SPACING).max()) for study in studies for box in study.boxes]
    assert min(sizes) < 30
    assert max(sizes) > 60


def test_a_lesion_alone_is_never_longer_than_nine_centimetres(studies):
    alone = [study.boxes[0].size.max() * SPACING for study in studies if len(study.boxes) == 1]
    assert max(alone) <= 90 + 2 * SPACING


def test_cores_begin_at_their_enhancing_rim(studies):
    """Of what touches a ring-enhancing core from outside, more is enhancing than not: no shell of core round a rim."""
    for study in studies:
        enhancing, core = study.labels == 4, (study.labels == 4) | (study.labels == 1)
        if int(enhancing.sum()) < 300:
            continue
        depth = ndimage.distance_transform_edt(core.numpy())
        border = (depth > 0) & (depth <= 1)
        assert enhancing.numpy()[border].mean() > 0.9 * enhancing.numpy()[depth > 2].mean()


@pytest.mark.parametrize(("spacing", "shape"), [(1.0, (160, 192, 160)), (2.0, (80, 96, 80))])
def test_a_study_of_finer_voxels_is_as_plausible(spacing, shape):
    study = make_study(12, shape, spacing)
    assert 800 < float(study.brain.sum()) * spacing**3 / 1000 < 1900
    assert study.grade == 1
    assert mean(study, FLAIR, 2) > float(study.image[FLAIR][study.brain & (study.labels == 0)].median())
    assert mean(study, T1CE, 4) > 1.3 * mean(study, T1, 4)


def test_a_study_without_tumour_has_no_label_box_or_grade(studies):
    for study in studies:
        assert bool((study.labels > 0).any()) == bool(study.boxes) == (study.grade is not None)


def test_boxes_hold_every_labelled_voxel_and_no_box_is_loose(studies):
    for study in studies:
        labels = study.labels.numpy()
        covered = np.zeros(labels.shape, bool)
        for box in study.boxes:
            where = box.slices(labels.shape)
            covered[where] = True
            inside = labels[where] > 0
            assert all(inside.take(side, axis).any() for axis in range(3) for side in (0, -1))
        assert not (labels[~covered] > 0).any()


def test_every_box_holds_a_core_of_its_own(studies):
    for study in studies:
        labels = study.labels.numpy()
        assert len(study.boxes) <= 3
        for box in study.boxes:
            assert np.isin(labels[box.slices(labels.shape)], (1, 4)).any()


def test_brains_have_the_volume_of_adult_brains(studies):
    volumes = [float(study.brain.sum()) * SPACING**3 / 1000 for study in studies]
    assert 1000 < np.mean(volumes) < 1800
    assert min(volumes) > 800


def mean(study: SyntheticStudy, channel: int, label: int) -> float:
    return float(study.image[channel][study.labels == label].mean())


def test_oedema_is_brighter_than_white_matter_on_flair_and_t2_and_darker_on_t1(studies):
    wet = [study for study in studies if int((study.labels == 2).sum()) > 200]
    assert len(wet) > 5
    for study in wet:
        healthy = study.brain & (study.labels == 0)
        assert mean(study, FLAIR, 2) > 1.05 * float(study.image[FLAIR][healthy].median())
        # White matter is the brightest tissue on T1 and the darkest on T2.
        assert mean(study, T2, 2) > float(study.image[T2][healthy].quantile(0.25))
        assert mean(study, T1, 2) < float(study.image[T1][healthy].quantile(0.75))


def test_gadolinium_brightens_enhancing_tumour_and_not_oedema(studies):
    lit = [study for study in studies if int((study.labels == 4).sum()) > 100 and study.grade == 1]
    assert len(lit) > 5
    lit = [study for study in lit if bool((study.labels == 2).any())]
    ratios = [(mean(s, T1CE, 4) / mean(s, T1, 4), mean(s, T1CE, 2) / mean(s, T1, 2)) for s in lit]
    assert np.mean([enhancing for enhancing, _ in ratios]) > 1.5
    assert np.mean([oedema for _, oedema in ratios]) < 1.35


def test_nothing_lies_outside_the_brain(studies):
    for study in studies:
        assert float(study.image[:, ~study.brain].abs().max()) == 0
        assert int(study.labels[~study.brain].sum()) == 0
        assert bool(torch.isfinite(study.image).all())


def test_a_written_study_reads_back_with_its_truth(studies, tmp_path):
    study = next(s for s in studies if len(s.boxes) >= 2)
    folder = write_study(study, tmp_path / "case")
    labels = np.asarray(nibabel.load(folder / "seg.nii.gz").dataobj)
    assert np.array_equal(labels, study.labels.numpy())
    image = nibabel.load(folder / "flair.nii.gz")
    assert np.allclose(image.affine, study.affine)
    assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    ratio = np.asarray(image.dataobj)[study.brain.numpy()].mean() / float(study.image[FLAIR][study.brain].mean())
    assert ratio == pytest.approx(800, rel=0.01)
    truth = json.loads((folder / "truth.json").read_text())
    assert truth["grade"] == "HGG"
    assert len(truth["lesions"]) == len(study.boxes)
    centre = np.mean(np.argwhere(np.pad(np.ones(study.boxes[0].size.astype(int)), 0)), axis=0) + study.boxes[0].lower
    assert np.allclose(truth["lesions"][0]["center_ras_mm"], nibabel.affines.apply_affine(image.affine, centre))


def test_a_filled_folder_is_not_written_into(studies, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(WrongUse, match="not empty"):
        write_study(studies[0], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def _lattice(seed: int) -> Lattice:
    return Lattice(Random(seed, torch.device("cpu")), SHAPE, SPACING)


def test_coils_receive_more_from_the_surface_than_from_the_depth():
    for seed in range(8):
        lattice = _lattice(seed)
        head = make_head(lattice)
        received = coil_sensitivity(lattice.random, head)
        assert float(received[head.brain].mean()) == pytest.approx(1, abs=1e-4)
        shell, depth = (received[head.brain & part].mean() for part in (head.hull < 8, head.hull > 40))
        assert float(shell) > 1.15 * float(depth)


def test_wide_sinuses_are_dura_at_the_back_and_along_the_midline():
    for seed in range(4):
        plain, wide = (_tissue(seed, replace(Family(), wide_sinuses=share)) for share in (0.0, 1.0))
        (x, y, _), added = plain[0].coordinates, wide[1].dura - plain[1].dura
        assert float(added.min()) >= 0
        assert float(added.sum()) * SPACING**3 / 1000 > 2
        assert float(added[(y < 0) & (x.abs() > 12)].sum()) < 0.02 * float(added.sum())


def test_a_low_grade_tumour_enhances_in_patches_and_as_often_as_its_family_says():
    for share, fewest, most in ((0.0, 0, 0), (1.0, 4, 6)):
        family = replace(
            Family(), tumour_free=0.0, low_grade=1.0, low_grade_enhancing=share, low_grade_patches=(0.8, 0.8)
        )
        enhancing = []
        for seed in range(6):
            lattice = _lattice(seed)
            (lesion,) = plan_lesions(lattice, family, make_head(lattice))
            enhancing.append(float((lesion.enhancing & (lesion.core > 0)).sum() / (lesion.core > 0).sum()))
        assert max(enhancing) < 0.45
        assert fewest <= sum(part > 0 for part in enhancing) <= most


def _tissue(seed: int, family: Family) -> tuple[Head, Tissue]:
    lattice = _lattice(seed)
    head = make_head(lattice)
    return head, make_tissue(lattice, family, head, head.coordinates, torch.zeros(SHAPE))
