"""Label conventions and overlap measures."""

from __future__ import annotations

import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.evaluation.labels import LabelConvention, recognise_convention, unify_labels
from MTMed3DCore.evaluation.overlap import dice, main_box, region_dice


def row(*values: int) -> np.ndarray:
    return np.array(values, np.int16).reshape(-1, 1, 1)


def test_the_three_conventions_give_the_same_labels():
    wanted = [0, 1, 2, 1, 4]
    assert unify_labels(row(0, 1, 2, 3, 4), "old").ravel().tolist() == wanted
    assert unify_labels(row(0, 1, 2, 1, 4), "middle").ravel().tolist() == wanted
    assert unify_labels(row(0, 1, 2, 1, 3), "new").ravel().tolist() == wanted


def test_a_named_convention_overrules_the_recognised_one():
    assert recognise_convention(row(0, 1, 2, 3)) is LabelConvention.BRATS_2023
    assert unify_labels(row(0, 3), "x", LabelConvention.BRATS_2013).ravel().tolist() == [0, 1]


@pytest.mark.parametrize("values", [(0, 5), (0, 1, 2, 3)])
def test_a_value_outside_the_convention_is_refused_with_file_and_value(values):
    with pytest.raises(InputRefused, match=rf"seg\.nii.*label {values[-1]}"):
        unify_labels(row(*values), "seg.nii", LabelConvention.BRATS_2017)


def test_a_label_that_is_not_whole_is_refused():
    with pytest.raises(InputRefused, match=r"1\.5"):
        unify_labels(np.array([[[0.0, 1.5]]]), "seg.nii")


def test_dice_counts_shared_voxels_twice_and_charges_an_empty_side():
    a, b = row(1, 1, 0, 0) > 0, row(0, 1, 1, 1) > 0
    assert dice(a, b) == pytest.approx(2 / 5)
    assert dice(a & False, b) == 0
    assert dice(a & False, b & False) == 1


def test_region_dice_nests_the_regions():
    found, truth = row(1, 2, 4, 0).astype(np.uint8), row(4, 2, 4, 2).astype(np.uint8)
    assert region_dice(found, truth) == pytest.approx({"whole_tumour": 6 / 7, "tumour_core": 1.0, "enhancing": 2 / 3})


def test_the_main_box_holds_the_largest_component_only():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[1, 1, 1] = 4
    labels[4:7, 5:8, 2:9] = 2
    box = main_box(labels)
    assert box is not None
    assert box.to_list() == [4, 5, 2, 7, 8, 9]
    assert main_box(np.zeros((3, 3, 3), np.uint8)) is None
