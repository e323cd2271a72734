"""A study from a folder or four files: one grid, one head, each sequence once."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from Testing.awkward_grids import GRIDS, SHAPE


def files(folder) -> dict:
    return {name: folder / f"{name}.nii.gz" for name in SEQUENCES}


def test_a_folder_and_its_four_files_give_the_same_study(write_case):
    folder = write_case()
    a, b = Study.read(folder), Study.read(**files(folder))
    assert np.array_equal(a.array(), b.array())
    assert a.id == "case"
    assert list(a.sequences) == list(SEQUENCES)
    assert a.warnings == ()


def test_the_channels_are_in_the_order_t1_t1ce_t2_flair(write_case):
    study = Study.read(write_case())
    for channel, name in zip(study.array(), SEQUENCES, strict=True):
        assert np.array_equal(channel, np.asarray(nibabel.load(study.sources[name]).dataobj))


def test_a_missing_sequence_is_refused_by_name(write_case):
    given = files(write_case())
    del given["flair"]
    with pytest.raises(InputRefused, match="flair is missing"):
        Study.read(**given)


def test_the_same_file_twice_is_refused(write_case):
    given = files(write_case())
    with pytest.raises(InputRefused, match="as t2 and as flair") as refusal:
        Study.read(**{**given, "flair": given["t2"]})
    assert refusal.value.code == "sequence-twice"


def test_the_same_pixels_twice_are_refused(write_case):
    array = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    with pytest.raises(InputRefused, match="same image") as refusal:
        Study.read(write_case(t1=array, t2=array.copy()))
    assert refusal.value.code == "sequence-twice"


def test_folder_and_files_together_or_neither_are_wrong_use(write_case):
    folder = write_case()
    with pytest.raises(WrongUse):
        Study.read()
    with pytest.raises(WrongUse):
        Study.read(folder, t1=folder / "t1.nii.gz")


def test_a_sequence_on_another_grid_is_brought_to_the_t1ce_grid_and_said(write_case):
    """The T2 is a linear field on a finer flipped grid, so its values after resampling are known everywhere."""
    slope = np.array([0.5, 0.3, -0.2])
    affine = np.diag([-0.5, -0.5, 0.5, 1.0])
    affine[:3, 3] = [20, 20, -20]
    shape = (80, 80, 80)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    field = (index @ affine[:3, :3].T + affine[:3, 3]) @ slope
    folder = write_case()
    nibabel.save(nibabel.Nifti1Image(field.astype(np.float32), affine), folder / "t2.nii.gz")
    study = Study.read(folder)
    place = study.grid.to_world(np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1))
    assert np.abs(study.sequences["t2"].array - place @ slope).max() < 1e-3
    assert [(notice.code, "t2" in notice.text) for notice in study.warnings] == [("resampled", True)]


def test_a_sequence_elsewhere_in_space_is_refused(write_case):
    folder = write_case()
    far = GRIDS["axial"].copy()
    far[0, 3] = 500
    array = np.random.default_rng(1).uniform(1, 9, SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, far), folder / "flair.nii.gz")
    with pytest.raises(InputRefused, match=r"flair\.nii\.gz covers 0%") as refusal:
        Study.read(folder)
    assert refusal.value.code == "no-overlap"


def test_real_studies_of_every_kind_are_read(real_cases):
    for case in sorted(real_cases.iterdir()):
        study = Study.read(case)
        assert study.array().shape == (4, 240, 240, 155)
        assert np.allclose(study.grid.spacing, 1.0)
        assert np.allclose(np.diag(study.grid.axes), [-1, -1, 1])


def test_a_scanners_study_with_tilted_sequences_keeps_the_t1ce_grid(real_cases):
    study = Study.read(real_cases.parent / "native" / "TCGA-FG-6692")
    assert study.grid.shape == (256, 224, 26)
    assert {notice.text.split()[1] for notice in study.warnings} == {"t2", "flair"}
