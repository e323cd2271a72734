"""A run on a data list: it ends with a bundle, goes on after an interruption, and refuses what it cannot train on."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from MTMed3DCore import cli
from MTMed3DCore.bundles import read_bundle
from MTMed3DCore.datalist import DataList
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training.examples import ExampleCache, labels_on_grid, prepare_case
from MTMed3DCore.training.feeding import CasePatches
from MTMed3DCore.training.run import train
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
    with pytest.raises(WrongUse, match="another settings"):
        train(listed, finished, replace(SMALL, learning_rate=1.0), cache=cache, resume=True)
    with pytest.raises(WrongUse, match="no run to resume"):
        train(listed, tmp_path / "none", SMALL, cache=cache, resume=True)


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
