"""Which file is which sequence, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.sequences import SEQUENCES, find_sequences, sequence_of


@pytest.mark.parametrize(
    ("names", "rest"),
    [
        (["Brats18_2013_2_1_t1.nii.gz", "Brats18_2013_2_1_t1ce.nii.gz", "Brats18_2013_2_1_t2.nii.gz", "Brats18_2013_2_1_flair.nii.gz"], ["Brats18_2013_2_1_seg.nii.gz"]),
        (["BraTS19_CBICA_AAB_1_t1.nii", "BraTS19_CBICA_AAB_1_t1ce.nii", "BraTS19_CBICA_AAB_1_t2.nii", "BraTS19_CBICA_AAB_1_flair.nii"], ["BraTS19_CBICA_AAB_1_seg.nii"]),
        (["BraTS20_Training_001_t1.nii.gz", "BraTS20_Training_001_t1ce.nii.gz", "BraTS20_Training_001_t2.nii.gz", "BraTS20_Training_001_flair.nii.gz"], []),
        (["BraTS2021_00003_t1.nii.gz", "BraTS2021_00003_t1ce.nii.gz", "BraTS2021_00003_t2.nii.gz", "BraTS2021_00003_flair.nii.gz"], ["BraTS2021_00003_seg.nii.gz"]),
        (["BraTS-GLI-00000-000-t1n.nii.gz", "BraTS-GLI-00000-000-t1c.nii.gz", "BraTS-GLI-00000-000-t2w.nii.gz", "BraTS-GLI-00000-000-t2f.nii.gz"], ["BraTS-GLI-00000-000-seg.nii.gz"]),
        (["VSD.Brain.XX.O.MR_T1.54192.mha", "VSD.Brain.XX.O.MR_T1c.54193.mha", "VSD.Brain.XX.O.MR_T2.54194.mha", "VSD.Brain.XX.O.MR_Flair.54191.mha"], ["VSD.Brain_3more.XX.O.OT.54517.mha"]),
        (["T1.nrrd", "T1_post.nrrd", "T2.nrrd", "T2_FLAIR.nrrd"], ["t1ce_brainmask.nrrd", "notes.txt"]),
        (["t1.nii.gz", "t1ce.nii.gz", "t2.nii.gz", "flair.nii.gz"], ["machine_fusion.nii.gz"]),
        (["x T1 pre.nii", "x T1 Gd.nii", "x T2w.nii", "x FLAIR.nii"], []),
    ],
)
def test_names_of_every_year_are_understood(tmp_path, names, rest):
    for name in names + rest:
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
