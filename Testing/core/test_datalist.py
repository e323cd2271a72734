"""Data lists: every layout's cases are found, nothing is guessed, and folds keep patients together."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest

from MTMed3DCore import cli
from MTMed3DCore.datalist import Case, DataList, assign_folds, build_datalist
from MTMed3DCore.datalist.case import ImageFile
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.training.examples import ExampleCache, read_images
from MTMed3DCore.volume import read_volume
from Testing.awkward_grids import GRIDS, SHAPE, oblique_affine

BRATS_2018 = {"t1": "_t1", "t1ce": "_t1ce", "t2": "_t2", "flair": "_flair", "label": "_seg"}
BRATS_2023 = {"t1": "-t1n", "t1ce": "-t1c", "t2": "-t2w", "flair": "-t2f", "label": "-seg"}


def tumour(value: int = 4, corner: tuple[int, int, int] = (4, 5, 6)) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    x, y, z = corner
    labels[x : x + 6, y : y + 5, z : z + 4] = 2
    labels[x + 2 : x + 4, y + 1 : y + 3, z + 1 : z + 3] = value
    return labels


def write_case(
    place: Path,
    endings: dict[str, str],
    labels: np.ndarray | None,
    affine: np.ndarray = GRIDS["axial"],
) -> None:
    place.mkdir(parents=True)
    rng = np.random.default_rng(list(place.name.encode()))  # every patient has images of their own
    for name, ending in endings.items():
        array = labels if name == "label" else rng.uniform(1, 99, SHAPE).astype(np.float32)
        if array is not None:
            nibabel.save(nibabel.Nifti1Image(array, affine), place / f"{place.name}{ending}.nii.gz")


def by_id(listed: DataList) -> dict[str, Case]:
    return {case.id: case for case in listed.cases}


def test_folders_of_brats_2019_give_their_grades_and_patients(tmp_path):
    for grade, name in (("HGG", "BraTS19_TCIA01_401_1"), ("LGG", "BraTS19_2013_0_1"), ("HGG", "BraTS19_TCIA01_401_2")):
        write_case(tmp_path / "data" / grade / name, BRATS_2018, tumour())
    cases = by_id(build_datalist([tmp_path / "data"], folds=2))
    assert {name: case.grade for name, case in cases.items()} == {
        "BraTS19_TCIA01_401_1": "HGG",
        "BraTS19_TCIA01_401_2": "HGG",
        "BraTS19_2013_0_1": "LGG",
    }
    assert cases["BraTS19_TCIA01_401_1"].patient == cases["BraTS19_TCIA01_401_2"].patient == "BraTS19_TCIA01_401"
    assert cases["BraTS19_TCIA01_401_1"].fold == cases["BraTS19_TCIA01_401_2"].fold
    assert cases["BraTS19_TCIA01_401_1"].images["t1ce"].path.name == "BraTS19_TCIA01_401_1_t1ce.nii.gz"


def test_the_mapping_table_of_brats_2020_gives_the_grades_it_has(tmp_path):
    for number in (1, 2, 3):
        write_case(tmp_path / f"BraTS20_Training_00{number}", BRATS_2018, tumour())
    with (tmp_path / "name_mapping.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [
                ["Grade", "BraTS_2019_subject_ID", "BraTS_2020_subject_ID"],
                ["HGG", "BraTS19_X_1", "BraTS20_Training_001"],
                ["LGG", "NA", "BraTS20_Training_002"],
            ]
        )
    listed = build_datalist([tmp_path], folds=0)
    assert [case.grade for case in listed.cases] == ["HGG", "LGG", None]
    assert listed.notes[0].startswith("1 of 3 cases have no known grade")


def test_brats_2023_names_time_points_and_its_labels_are_read_by_its_own_values(tmp_path):
    write_case(tmp_path / "BraTS-GLI-00005-000", BRATS_2023, tumour(value=3))
    write_case(tmp_path / "BraTS-GLI-00005-001", BRATS_2023, tumour(value=3))
    cases = build_datalist([tmp_path], folds=0).cases
    assert {case.patient for case in cases} == {"BraTS-GLI-00005"}
    assert {case.convention for case in cases} == {"BRATS_2023"}


def test_sequences_in_folders_of_their_own_are_one_case_of_the_first_convention(tmp_path):
    rng = np.random.default_rng(2)
    for name in ("Flair", "T1", "T1c", "T2", "OT"):
        place = tmp_path / "brats_2013_pat0001_1" / f"VSD.Brain.XX.O.MR_{name}.1"
        place.mkdir(parents=True)
        array = tumour() if name == "OT" else rng.uniform(1, 99, SHAPE).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array, GRIDS["axial"]), place / f"VSD.Brain.XX.O.MR_{name}.nii.gz")
    (case,) = build_datalist([tmp_path], folds=0).cases
    assert (case.id, case.patient, case.convention) == ("brats_2013_pat0001_1", "brats_2013_pat0001", "BRATS_2013")


def write_decathlon(place: Path, more: tuple[object, ...] = ()) -> Path:
    """One case of a Decathlon folder, whose description names more; the file of its images."""
    for folder in ("imagesTr", "labelsTr"):
        (place / folder).mkdir(parents=True)
    images = place / "imagesTr" / "BRATS_001.nii.gz"
    stack = np.random.default_rng(3).uniform(1, 99, (*SHAPE, 4)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(stack, GRIDS["axial"]), images)
    nibabel.save(nibabel.Nifti1Image(tumour(3), GRIDS["axial"]), place / "labelsTr" / "BRATS_001.nii.gz")
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    described = {"modality": modality, "training": [pair("BRATS_001"), *more]}
    (place / "dataset.json").write_text(json.dumps(described))
    return images


def pair(name: str) -> dict[str, str]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}


def test_the_decathlons_volumes_are_told_apart_by_its_own_description(tmp_path):
    write_decathlon(tmp_path, (pair("BRATS_002"),))
    listed = build_datalist([tmp_path], folds=0)
    (case,) = listed.cases
    assert {name: file.index for name, file in case.images.items()} == {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
    assert case.convention == "MSD"
    assert [Path(each.path).name for each in listed.skipped] == ["BRATS_002.nii.gz"]


def test_entries_of_the_decathlon_that_name_no_pair_are_skipped_and_shown(tmp_path):
    write_decathlon(tmp_path, ("./imagesTr/BRATS_002.nii.gz", {"image": 5, "label": 6}, {"image": "x"}, None))
    listed = build_datalist([tmp_path], folds=0)
    assert [case.id for case in listed.cases] == ["BRATS_001"]
    assert {Path(each.path).name for each in listed.skipped} == {"dataset.json"}
    assert [each.reason.split("entry ")[1].split(" names")[0] for each in listed.skipped] == [
        "'./imagesTr/BRATS_002.nii.gz'",
        "{'image': 5, 'label': 6}",
        "{'image': 'x'}",
        "None",
    ]


def empty(file: Path) -> None:
    file.write_bytes(b"")


def rubbish(file: Path) -> None:
    file.write_bytes(b"not an image" * 99)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flat(file: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.ones(SHAPE[:2], np.float32), GRIDS["axial"]), file)


def not_finite(file: Path) -> None:
    image = nibabel.load(file)
    array = np.asarray(image.dataobj).copy()
    array[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, image.affine), file)


DAMAGES = [empty, rubbish, truncated, flat, not_finite]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_case_whose_t1ce_is_damaged_is_skipped_and_named(tmp_path, damage):
    for name in ("good", "bad"):
        write_case(tmp_path / name, BRATS_2018, tumour())
    damage(tmp_path / "bad" / "bad_t1ce.nii.gz")
    listed = build_datalist([tmp_path], folds=0)
    assert [case.id for case in listed.cases] == ["good"]
    (skipped,) = listed.skipped
    assert Path(skipped.path).name == "bad_t1ce.nii.gz"
    assert "bad_t1ce.nii.gz" in skipped.reason


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_images_of_four_dimensions_are_refused_by_list_and_training_alike(tmp_path, damage):
    images = write_decathlon(tmp_path)
    (case,) = build_datalist([tmp_path], folds=0).cases
    store = ExampleCache(tmp_path / "cache", 4.0)
    damage(images)
    with pytest.raises(InputRefused, match=r"BRATS_001\.nii\.gz"):
        read_images(case)
    assert "BRATS_001.nii.gz" in store.fill([case])["BRATS_001"]
    if damage is not not_finite:  # of the volumes, a list reads T1ce alone
        with pytest.raises(InputRefused, match=r"holds no case.*BRATS_001\.nii\.gz"):
            build_datalist([tmp_path], folds=0)
    images.unlink()
    assert "does not exist" in store.fill([case])["BRATS_001"]


def test_a_volume_that_a_file_does_not_have_is_refused(tmp_path):
    images = write_decathlon(tmp_path)
    with pytest.raises(InputRefused, match="no volume 4"):
        read_volume(images, index=4)
    labels = next((tmp_path / "labelsTr").iterdir())
    with pytest.raises(InputRefused, match="no volume 0"):
        read_volume(labels, index=0)


def test_the_label_map_of_brats_2020s_case_355_is_known_by_its_own_name(tmp_path):
    place = tmp_path / "BraTS20_Training_355"
    write_case(place, BRATS_2018, tumour())
    (place / f"{place.name}_seg.nii.gz").rename(place / "W39_1998.09.19_Segm.nii.gz")
    (case,) = build_datalist([tmp_path], folds=0).cases
    assert case.label.path.name == "W39_1998.09.19_Segm.nii.gz"
    assert len(case.boxes) == 1


def test_linked_folders_are_followed_once_and_links_that_lead_back_end(tmp_path):
    write_case(tmp_path / "store" / "a", BRATS_2018, tumour())
    write_case(tmp_path / "store" / "more" / "b", BRATS_2018, tumour())
    write_case(tmp_path / "data" / "d", BRATS_2018, tumour())
    (tmp_path / "data" / "HGG").mkdir()
    (tmp_path / "data" / "HGG" / "a").symlink_to(tmp_path / "store" / "a")
    (tmp_path / "data" / "LGG").symlink_to(tmp_path / "store" / "more")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "d")
    (tmp_path / "store" / "a" / "back").symlink_to(tmp_path / "data")
    listed = build_datalist([tmp_path / "data"], folds=0)
    assert {case.id: case.grade for case in listed.cases} == {"a": "HGG", "b": "LGG", "d": None}
    assert not listed.skipped


@pytest.mark.parametrize("affine", [GRIDS["axial"], GRIDS["flipped"], oblique_affine()])
def test_boxes_hold_each_lesion_in_world_space_on_every_grid(tmp_path, affine):
    labels = tumour() | tumour(corner=(16, 12, 12))
    write_case(tmp_path / "case_a", BRATS_2018, labels, affine)
    (case,) = build_datalist([tmp_path], folds=0).cases
    corners = [np.sort((box.corners() - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T, axis=0) for box in case.boxes]
    lower = sorted(tuple(np.round(each[0] + 0.5, 3)) for each in corners)
    upper = sorted(tuple(np.round(each[-1] + 0.5, 3)) for each in corners)
    assert lower == [(4, 5, 6), (16, 12, 12)]
    assert upper == [(10, 10, 10), (22, 17, 16)]


def test_grades_of_the_published_annotation_file_are_used_and_its_boxes_are_not(tmp_path):
    write_case(tmp_path / "data" / "Brats18_A_1", BRATS_2018, tumour())
    annotation = {
        "training": [
            {
                "image": "Brats18_A_1.nii.gz",
                "seg_label": "x",
                "box": [[0, 0, 0, 1, 1, 1]],
                "box_label": [0],
                "cls_label": [0],
            }
        ]
    }
    file = tmp_path / "data_annotation.json"
    file.write_text(json.dumps(annotation))
    (case,) = build_datalist([tmp_path / "data"], folds=0, annotation=file).cases
    assert case.grade == "LGG"
    assert np.allclose(case.boxes[0].size, [6, 5, 4])
    file.write_text(json.dumps({"training": [{"image": "a", "cls_label": [7]}]}))
    with pytest.raises(InputRefused, match=r"cls_label is \[7\]"):
        build_datalist([tmp_path / "data"], folds=0, annotation=file)


def test_what_cannot_be_used_is_skipped_with_its_reason(tmp_path):
    write_case(tmp_path / "good", BRATS_2018, tumour())
    write_case(tmp_path / "no_flair", {k: v for k, v in BRATS_2018.items() if k != "flair"}, tumour())
    write_case(tmp_path / "strange", BRATS_2018, tumour(value=9))
    write_case(tmp_path / "elsewhere", BRATS_2018, tumour())
    moved = nibabel.Nifti1Image(tumour(), GRIDS["sagittal"])
    nibabel.save(moved, tmp_path / "elsewhere" / "elsewhere_seg.nii.gz")
    listed = build_datalist([tmp_path], folds=0)
    assert [case.id for case in listed.cases] == ["good"]
    reasons = {Path(each.path).name: each.reason for each in listed.skipped}
    assert reasons["no_flair"].startswith("no flair")
    assert "the label 9" in reasons["strange_seg.nii.gz"]
    assert "grid" in reasons["elsewhere_seg.nii.gz"]


def test_a_label_map_that_no_reader_drew_is_none(tmp_path):
    endings = {**BRATS_2018, "label": "_machine_fusion_seg"}
    write_case(tmp_path / "a", endings, tumour())
    (case,) = build_datalist([tmp_path], folds=0).cases
    assert case.label is None
    assert case.boxes is None


def test_a_list_reads_back_as_it_was_written_and_moves_with_its_data(tmp_path):
    write_case(tmp_path / "old" / "data" / "HGG" / "a", BRATS_2018, tumour())
    listed = build_datalist([tmp_path / "old" / "data"], folds=0)
    listed.write(tmp_path / "old" / "list.json")
    (tmp_path / "old").rename(tmp_path / "new")
    (case,) = DataList.read(tmp_path / "new" / "list.json").cases
    assert case.images["t1"].path == (tmp_path / "new" / "data" / "HGG" / "a" / "a_t1.nii.gz")
    assert (case.grade, case.convention) == ("HGG", "BRATS_2017")
    assert np.allclose(case.boxes[0].corners(), listed.cases[0].boxes[0].corners())
    case.images["t1"].path.unlink()
    with pytest.raises(InputRefused, match=r"a_t1\.nii\.gz"):
        DataList.read(tmp_path / "new" / "list.json")


@pytest.mark.parametrize("content", ["", "{}", '{"schema": "mtmed3d.datalist/2"}'])
def test_what_is_no_list_is_refused(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputRefused) as caught:
        DataList.read(tmp_path / "list.json")
    assert caught.value.code == "list-damaged"


def cases_of(grades: dict[str, list[str | None]]) -> list[Case]:
    image = ImageFile(Path("x"))
    return [
        Case(f"{patient}-{n}", patient, dict.fromkeys(("t1", "t1ce", "t2", "flair"), image), grade=grade)
        for patient, given in grades.items()
        for n, grade in enumerate(given)
    ]


def test_folds_keep_patients_together_and_grades_balanced_whatever_the_order():
    grades = {f"h{n}": ["HGG", "HGG"] for n in range(13)} | {f"l{n}": ["LGG"] for n in range(7)} | {"u": [None]}
    cases = cases_of(grades)
    dealt = assign_folds(cases, 5, seed=3)
    for patient in grades:
        assert len({case.fold for case in dealt if case.patient == patient}) == 1
    for prefix in "hl":
        patients = {case.patient: case.fold for case in dealt if case.patient.startswith(prefix)}
        counts = Counter(patients.values())
        assert max(counts.values()) - min(counts.get(f, 0) for f in range(5)) <= 1
    again = {case.id: case.fold for case in assign_folds(cases[::-1], 5, seed=3)}
    assert again == {case.id: case.fold for case in dealt}
    assert again != {case.id: case.fold for case in assign_folds(cases, 5, seed=4)}


@pytest.mark.parametrize("folds", [1, 3, -2])
def test_folds_that_cannot_be_are_refused(folds):
    with pytest.raises(WrongUse, match="2 patients"):
        assign_folds(cases_of({"a": ["HGG"], "b": ["LGG"]}), folds)


def test_a_fold_is_split_into_training_and_validation():
    listed = DataList(assign_folds(cases_of({"a": ["HGG"], "b": ["LGG"], "c": ["HGG"]}), 3), folds=3)
    training, validation = listed.fold(1)
    assert {case.id for case in training} | {case.id for case in validation} == {"a-0", "b-0", "c-0"}
    assert [case.fold for case in validation] == [1]
    with pytest.raises(WrongUse, match="no fold 3"):
        listed.fold(3)


def test_a_list_without_folds_has_no_fold_to_ask_for_and_says_what_to_do():
    listed = DataList(cases_of({"a": ["HGG"], "b": ["LGG"]}))
    with pytest.raises(WrongUse, match=r"no folds.*no fold 0.*--all-cases") as caught:
        listed.fold(0)
    assert caught.value.code == "fold-unknown"


def test_a_list_says_what_a_case_without_a_label_map_is_good_for(tmp_path):
    unlabelled = {name: ending for name, ending in BRATS_2018.items() if name != "label"}
    write_case(tmp_path / "HGG" / "graded", unlabelled, None)
    write_case(tmp_path / "bare", unlabelled, None)
    (ungraded, note) = build_datalist([tmp_path], folds=0).notes
    assert ungraded.startswith("1 of 2 cases have no known grade")
    assert note.startswith("2 of 2 cases have no label map; they do not train or measure segmentation and detection.")
    assert "The grade of 1 of them is measured" in note


def test_the_command_writes_a_list_says_what_is_in_it_and_does_not_replace_one(tmp_path, capsys):
    write_case(tmp_path / "data" / "HGG" / "a", BRATS_2018, tumour())
    write_case(tmp_path / "data" / "LGG" / "b", BRATS_2018, tumour())
    arguments = ["datalist", str(tmp_path / "data"), "-o", str(tmp_path / "list.json"), "--folds", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["cases"], said["grades"], said["lesions"]) == (2, {"HGG": 1, "LGG": 1}, 2)
    assert cli.main(arguments) == 2
    assert "list.json exists" in capsys.readouterr().err
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert cli.main(["datalist", str(tmp_path / "empty"), "-o", str(tmp_path / "l2.json")]) == 3
    assert not (tmp_path / "l2.json").exists()


def test_a_study_without_tumour_is_a_case_with_no_boxes(tmp_path):
    write_case(tmp_path / "healthy_01", BRATS_2018, np.zeros(SHAPE, dtype=np.uint8))
    listed = build_datalist([tmp_path], folds=0)
    assert not listed.skipped
    assert listed.cases[0].boxes == ()
