"""A run on a data list: it ends with a bundle, goes on after an interruption, and refuses what it cannot train on."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from MTMed3DCore import cli
from MTMed3DCore.bundles import read_bundle
from MTMed3DCore.datalist import DataList
from MTMed3DCore.errors import Cancelled, InputRefused, WrongUse
from MTMed3DCore.preparation import prepare
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training import examples
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.examples import ExampleCache, labels_on_grid, prepare_case
from MTMed3DCore.training.feeding import CasePatches, loader_from
from MTMed3DCore.training.run import train
from MTMed3DCore.training.run_folder import compare
from MTMed3DCore.training.settings import CaseSettings
from Testing.training_runs import SMALL, four_studies, kill_at_random


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> DataList:
    return four_studies(tmp_path_factory.mktemp("studies"))


@pytest.fixture(scope="module")
def cache(listed: DataList, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def finished(listed: DataList, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from its first step to its last."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(listed, folder, SMALL, cache=cache)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "models" / "model.safetensors")


def test_a_run_leaves_its_settings_its_course_a_picture_and_a_bundle(finished: Path, listed: DataList) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert CaseSettings.from_dict(config["settings"]) == SMALL
    assert config["list_sha256"] == listed.sha256 != ""
    rows = [json.loads(row) for row in (finished / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["segmentation"]) for row in rows)
    (validation,) = [json.loads(row) for row in (finished / "validation.jsonl").read_text().splitlines()]
    assert set(validation) >= {"step", "whole_tumour", "tumour_core", "enhancing"}
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "bundle" / "configs" / "metadata.json").is_file()


def test_a_bundle_knows_its_training_patients_wherever_it_lies_and_names_none(
    finished: Path, listed: DataList, tmp_path: Path
) -> None:
    bundle = read_bundle(shutil.copytree(finished / "bundle", tmp_path / "moved"))
    training, validation = listed.fold(SMALL.fold or 0)
    assert training
    assert all(bundle.has_seen(case.patient) for case in training)
    assert not any(bundle.has_seen(case.patient) for case in validation)
    said = (bundle.folder / "configs" / "metadata.json").read_text()
    assert not any(case.patient in said for case in listed.cases)


def test_a_run_killed_at_a_random_step_goes_on_to_the_same_weights_bit_for_bit(
    finished: Path, listed: DataList, cache: Path, tmp_path: Path
) -> None:
    """A process of its own, ended by SIGKILL before or after its first checkpoint; half a row may be left behind."""
    listed.write(tmp_path / "list.json")
    (tmp_path / "settings.json").write_text(json.dumps(SMALL.to_dict()))
    folder = tmp_path / "whole"
    given = ["train", tmp_path / "list.json", "--settings", tmp_path / "settings.json", "--cache", cache, "--quiet"]
    command = [sys.executable, "-m", "MTMed3DCore", *map(str, given), "-o", str(folder)]
    kill_at_random(command, folder / "history.jsonl", SMALL.steps)
    assert not (folder / "bundle").exists()
    with (folder / "history.jsonl").open("a") as stream:
        stream.write('{"step": 4, "segm')
    torch.manual_seed(99)  # whatever the process did before
    train(DataList.read(tmp_path / "list.json"), folder, SMALL, cache=cache, resume=True)
    expected, resumed = weights(finished), weights(folder)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert (folder / "history.jsonl").read_text() == (finished / "history.jsonl").read_text()


def test_a_folder_with_a_run_needs_resume_and_the_same_settings(
    finished: Path, listed: DataList, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(WrongUse, match="not empty"):
        train(listed, finished, SMALL, cache=cache)
    with pytest.raises(WrongUse, match=r"another setting learning_rate: 0\.0004, not 1\.0"):
        train(listed, finished, replace(SMALL, learning_rate=1.0), cache=cache, resume=True)
    with pytest.raises(WrongUse, match="no run to resume"):
        train(listed, tmp_path / "none", SMALL, cache=cache, resume=True)


@pytest.fixture
def moved(listed: DataList, tmp_path: Path) -> Path:
    """The same studies at another place, with a list that was made at another time."""
    studies = listed.cases[0].images["t1"].path.parents[2]
    path = shutil.copytree(studies, tmp_path / "moved") / "list.json"
    path.write_text(path.read_text().replace('"created": "2', '"created": "1'))
    return path


def test_a_list_made_again_from_the_same_studies_resumes_wherever_they_lie(
    finished: Path, listed: DataList, moved: Path, tmp_path: Path
) -> None:
    again = DataList.read(moved)
    assert again.sha256 != listed.sha256
    train(again, shutil.copytree(finished, tmp_path / "whole"), SMALL, resume=True)


def test_changed_damaged_and_otherwise_used_studies_do_not_resume_and_are_named(
    finished: Path, moved: Path, tmp_path: Path
) -> None:
    again = DataList.read(moved)
    first, second, *others = again.cases
    folder, cache = shutil.copytree(finished, tmp_path / "whole"), tmp_path / "cache"
    swapped = again.with_cases((replace(first, fold=1 - first.fold), second, *others))
    with pytest.raises(WrongUse, match=rf"another use of them: {first.id}\."):
        train(swapped, folder, SMALL, cache=cache, resume=True)
    with pytest.raises(WrongUse, match="in another order"):
        train(again.with_cases(again.cases[::-1]), folder, SMALL, cache=cache, resume=True)
    file = first.images["t2"].path
    volume = nibabel.load(file)
    array = np.asarray(volume.dataobj).copy()
    array[array > 0] *= 2  # what normalisation would hide, and the file's time or size may as well
    nibabel.save(nibabel.Nifti1Image(array, volume.affine), file)
    second.images["t2"].path.write_bytes(second.images["t2"].path.read_bytes()[:900])
    with pytest.raises(WrongUse, match=rf"{first.id}, {second.id} \(refused now: .*\)\."):
        train(again, folder, SMALL, cache=cache, resume=True)


def test_a_run_of_an_earlier_version_resumes_with_the_very_list_that_it_began_with(
    finished: Path, tmp_path: Path
) -> None:
    now = json.loads((finished / "config.json").read_text())
    earlier = {name: value for name, value in now.items() if name != "studies"}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    compare(tmp_path, now)
    with pytest.raises(WrongUse, match="another list_sha256"):
        compare(tmp_path, now | {"list_sha256": "0"})
    with pytest.raises(WrongUse, match=r"other refused studies.*: a\."):
        compare(tmp_path, now | {"refused": {"a": "no such file"}})
    with pytest.raises(WrongUse, match=r"draws from some that train nothing: b\."):
        compare(tmp_path, now | {"studies": {**now["studies"], "trains_nothing": {"b": "0"}}})


def test_a_resumed_run_may_change_what_does_not_change_its_weights_and_notes_it(
    finished: Path, listed: DataList, cache: Path, tmp_path: Path
) -> None:
    def stop(stage: str, fraction: float, text: str) -> None:
        if stage == "train" and fraction >= 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(listed, tmp_path / "run", SMALL, cache=cache, progress=stop)
    otherwise = replace(SMALL, workers=1, save_every=1, validate_every=1)
    train(listed, tmp_path / "run", otherwise, cache=cache, resume=True)
    expected, resumed = weights(finished), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    _, second = [json.loads(row) for row in (tmp_path / "run" / "sessions.jsonl").read_text().splitlines()]
    assert second["settings"] == {"device": "cpu", "workers": 1, "save_every": 1, "validate_every": 1}
    config = json.loads((finished / "config.json").read_text())
    compare(finished, config | {"settings": replace(SMALL, device="cuda:1").to_dict()})
    with pytest.raises(WrongUse, match="another setting precision"):
        compare(finished, config | {"settings": replace(SMALL, precision="bf16").to_dict()})


def test_a_study_is_prepared_once_a_run_however_often_it_is_validated(
    listed: DataList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []
    monkeypatch.setattr(examples, "prepare", lambda study, **how: prepared.append(study) or prepare(study, **how))
    train(listed, tmp_path / "run", replace(SMALL, tasks=("detection",), steps=2, validate_every=1))
    assert len(prepared) == len(listed.cases)
    rows = [json.loads(row) for row in (tmp_path / "run" / "validation.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"step", "boxes_ap10"}] * 2


def test_no_more_processes_cut_patches_than_there_are_cores_and_they_cut_the_same(
    listed: DataList, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    many, none = (
        CasePatches(listed.cases, ExampleCache(cache, SMALL.spacing_mm), replace(SMALL, steps=2, workers=number))
        for number in (2, 0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = loader_from(many, 0, Team())
        assert loader.num_workers == 1
        cut = list(loader)
    assert loader_from(none, 0, Team()).num_workers == 0
    assert all(torch.equal(each.image, none[number].image) for number, each in enumerate(cut))


def test_a_damaged_checkpoint_is_refused(finished: Path, listed: DataList, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_bytes((finished / "config.json").read_bytes())
    (folder / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(InputRefused, match=r"checkpoint\.pt"):
        train(listed, folder, SMALL, cache=cache, resume=True)


def test_one_task_alone_trains_without_the_labels_of_the_others(listed: DataList, cache: Path, tmp_path: Path) -> None:
    bare = listed.with_cases(tuple(replace(case, grade=None, boxes=None) for case in listed.cases))
    bundle = train(bare, tmp_path / "run", replace(SMALL, tasks=("segmentation",), steps=1), cache=cache)
    assert bundle.network_config["tasks"] == ["segmentation"]
    with pytest.raises(InputRefused, match="truth for grading"):
        train(bare, tmp_path / "other", replace(SMALL, tasks=("segmentation", "grading")), cache=cache)


def test_patches_are_a_function_of_seed_and_number_and_every_case_comes_once_an_epoch(
    listed: DataList, cache: Path
) -> None:
    store = ExampleCache(cache, SMALL.spacing_mm)
    first, again = (CasePatches(listed.cases, store, SMALL) for _ in range(2))
    assert torch.equal(first[3].image, again[3].image)
    assert not torch.equal(first[3].image, CasePatches(listed.cases, store, replace(SMALL, seed=5))[3].image)
    order = [first._order(epoch) for epoch in range(4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in order)
    assert len({tuple(each) for each in order}) > 1


def test_a_cached_case_is_what_preparation_gave_and_a_changed_file_is_prepared_anew(
    listed: DataList, tmp_path: Path
) -> None:
    store = ExampleCache(tmp_path, SMALL.spacing_mm)
    case = listed.cases[0]
    direct, _ = prepare_case(case, SMALL.spacing_mm)
    kept = store.load(case)
    assert torch.equal(kept.image, direct.image.half().float())
    assert torch.equal(kept.labels, direct.labels)
    np.testing.assert_allclose([box.to_list() for box in kept.boxes], [box.to_list() for box in direct.boxes])
    assert kept.grade == direct.grade
    before = store.path(case)
    case.label.path.touch()
    assert store.path(case) != before


def test_labels_keep_their_volume_on_a_coarser_grid(listed: DataList) -> None:
    study = make_study(13, (80, 96, 80), 2.0)  # 135 ml
    coarse = make_study(13, (40, 48, 40), 4.0).grid
    labels = study.labels.numpy()
    moved = labels_on_grid(labels, study.grid, coarse)
    before = (labels > 0).sum() * study.grid.voxel_volume_ml
    assert (moved > 0).sum() * coarse.voxel_volume_ml == pytest.approx(before, rel=0.02)


def test_the_command_takes_options_before_the_file_and_resumes_with_its_own_settings(
    listed: DataList, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {key: value for key, value in SMALL.to_dict().items() if key not in ("steps", "device")}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "steps": 9}))
    path = tmp_path / "list.json"
    listed.write(path)
    arguments = ["train", str(path), "-o", str(tmp_path / "run"), "--cache", str(cache), "--json"]
    chosen = ["--settings", str(tmp_path / "settings.json"), "--steps", "1", "--device", "cpu"]
    assert cli.main([*arguments, *chosen]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert cli.main([*arguments, "--resume"]) == 0
    assert cli.main([*arguments]) == 2
    assert cli.main(["train", str(path), "-o", str(tmp_path / "x"), "--patch", "50", "--device", "cpu"]) == 2
    assert "patch cannot be 50" in capsys.readouterr().err
    assert cli.main(["train", str(path), "-o", str(tmp_path / "x"), "--seed", "-1", "--device", "cpu"]) == 2
    assert "seed cannot be -1" in capsys.readouterr().err
