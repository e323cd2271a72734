"""Which file is which sequence, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.sequences import SEQUENCES, find_sequences, sequence_of

YEARS = {
    "BraTS 2018": ("Brats18_2013_2_1_{}.nii.gz", "t1 t1ce t2 flair", "Brats18_2013_2_1_seg.nii.gz"),
    "BraTS 2019": ("BraTS19_CBICA_AAB_1_{}.nii", "t1 t1ce t2 flair", "BraTS19_CBICA_AAB_1_seg.nii"),
    "BraTS 2020": ("BraTS20_Training_001_{}.nii.gz", "t1 t1ce t2 flair", "name_mapping.csv"),
    "BraTS 2021": ("BraTS2021_00003_{}.nii.gz", "t1 t1ce t2 flair", "BraTS2021_00003_seg.nii.gz"),
    "BraTS 2023": ("BraTS-GLI-00000-000-{}.nii.gz", "t1n t1c t2w t2f", "BraTS-GLI-00000-000-seg.nii.gz"),
    "BraTS 2013": ("VSD.Brain.XX.O.MR_{}.mha", "T1.54192 T1c.54193 T2.54194 Flair.54191", "VSD.Brain.XX.O.OT.5451.mha"),
    "plain": ("{}.nii.gz", "t1 t1ce t2 flair", "machine_fusion.nii.gz"),
    "words": ("x {}.nrrd", "T1-pre T1_Gd T2w T2_FLAIR", "t1ce_brainmask.nrrd"),
}


@pytest.mark.parametrize("year", YEARS)
def test_names_of_every_year_are_understood(tmp_path, year):
    pattern, words, other = YEARS[year]
    names = [pattern.format(word) for word in words.split()]
    for name in [*names, other]:
        (tmp_path / name).touch()
    found = find_sequences(tmp_path)
    assert [found[sequence].name for sequence in SEQUENCES] == names


@pytest.mark.parametrize("name", ["seg.nii.gz", "t1ce_mask.nii.gz", "adc.nii.gz", "T10.nii.gz", "flairness.nii.gz"])
def test_labels_and_unknown_names_are_no_sequence(name):
    assert sequence_of(Path(name)) is None


def test_a_missing_sequence_is_refused_with_what_is_there(tmp_path):
    for name in ("t1.nii", "t2.nii", "flair.nii"):
        (tmp_path / name).touch()
    with pytest.raises(InputRefused, match=r"no t1ce \(it holds: flair.nii, t1.nii, t2.nii\)") as refusal:
        find_sequences(tmp_path)
    assert refusal.value.code == "sequence-missing"


def test_two_files_for_one_sequence_are_refused_by_name(tmp_path):
    for name in ("a_t1.nii", "b_t1.nii", "t1ce.nii", "t2.nii", "flair.nii"):
        (tmp_path / name).touch()
    with pytest.raises(InputRefused, match=r"a_t1.nii, b_t1.nii") as refusal:
        find_sequences(tmp_path)
    assert refusal.value.code == "sequence-ambiguous"


def test_a_folder_that_is_a_file_or_absent_is_refused(tmp_path):
    (tmp_path / "t1.nii").touch()
    for place, what in ((tmp_path / "t1.nii", "is a file"), (tmp_path / "nowhere", "does not exist")):
        with pytest.raises(InputRefused, match=what):
            find_sequences(place)
