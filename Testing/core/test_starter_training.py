"""The starter's training leaves a record from which its bundle can be made at any of its snapshots."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.networks.ownership import owner
from MTMed3DCore.training.loop import SNAPSHOTS, StarterRun, averaged, train_starter
from MTMed3DCore.training.settings import StarterSettings

SETTINGS = StarterSettings(
    tasks=("grading",), steps=5, wide_share=0.0, study_shape=(64, 64, 64), spacing_mm=2.5, warm_up=0, seed=31
)
SHAPES = [[8.0, 8.0, 8.0], [12.0, 12.0, 12.0], [20.0, 20.0, 20.0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps that goes on from one of seven."""
    folder = tmp_path_factory.mktemp("run")
    earlier = StarterRun(SETTINGS, SHAPES, {}, steps=7, minutes=2.0, seeds=(5,))
    train_starter(SETTINGS, folder, earlier)
    return folder


def test_a_run_is_read_with_the_steps_and_seeds_of_what_it_went_on_from(folder: Path) -> None:
    run = StarterRun.read(folder)
    assert run.settings == SETTINGS
    assert (run.steps, run.seeds, run.anchor_shapes) == (12, (5, 31), SHAPES)
    assert run.minutes >= 2.0


def test_each_snapshot_holds_the_weights_of_its_own_step(folder: Path) -> None:
    runs = [StarterRun.read(folder, share) for share in SNAPSHOTS]
    assert [run.steps for run in runs] == [9, 10, 11, 12]
    last = StarterRun.read(folder)
    assert all(torch.equal(tensor, last.weights[name]) for name, tensor in runs[-1].weights.items())
    for before, after in pairwise(runs):
        assert any(not torch.equal(tensor, after.weights[name]) for name, tensor in before.weights.items())


def test_every_step_is_in_the_history_with_its_loss(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["progress"] == 1.0
    assert all(row["grading"] >= 0 for row in rows)


def test_a_folder_without_a_run_is_refused_by_the_name_of_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"settings\.json"):
        StarterRun.read(tmp_path)


def test_an_average_of_runs_has_the_mean_of_their_weights_and_the_record_of_the_last() -> None:
    weights = [{"weight": torch.tensor([1.0, 5.0 * n]), "count": torch.tensor(n)} for n in (1, 2, 6)]
    runs = [StarterRun(SETTINGS, SHAPES, each, steps=n, minutes=n) for n, each in enumerate(weights, start=1)]
    mean = averaged(runs)
    assert torch.equal(mean.weights["weight"], torch.tensor([1.0, 15.0]))
    assert (mean.weights["count"].item(), mean.steps, mean.minutes) == (6, 3, 3)


def test_an_average_of_one_run_is_that_run(folder: Path) -> None:
    run = StarterRun.read(folder)
    mean = averaged([run])
    assert all(torch.equal(tensor, mean.weights[name]) for name, tensor in run.weights.items())


@pytest.mark.parametrize("unlike", [{"weights": {"weight": torch.zeros(3)}}, {"anchor_shapes": [[1.0, 1.0, 1.0]]}])
def test_runs_of_other_networks_or_anchors_are_not_averaged(unlike: dict[str, Any]) -> None:
    run = StarterRun(SETTINGS, SHAPES, {"weight": torch.zeros(2)}, steps=1, minutes=1.0)
    with pytest.raises(InputRefused, match="Run 1 of 2 has another network or other anchors"):
        averaged([replace(run, **unlike), run])


def test_a_run_of_the_grading_alone_moves_no_weight_of_another_part(tmp_path: Path) -> None:
    settings = replace(SETTINGS, tasks=("segmentation", "grading"), only=("grading",), balancing="fixed", steps=2)
    train_starter(replace(settings, only=(), steps=1), tmp_path / "all")
    before = StarterRun.read(tmp_path / "all")
    train_starter(settings, tmp_path / "one", before)
    after = StarterRun.read(tmp_path / "one").weights
    moved = {
        owner(name, settings.tasks) for name, tensor in after.items() if not torch.equal(tensor, before.weights[name])
    }
    assert moved == {"grading"}
    row = json.loads((tmp_path / "one" / "history.jsonl").read_text().splitlines()[0])
    assert "grading" in row
    assert "segmentation" not in row


@pytest.mark.parametrize("wrong", [{"only": ("detection",)}, {"balancing": "gradnorm"}])
def test_parts_that_are_not_there_or_need_a_shared_gradient_are_not_trained_alone(wrong: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {"only": ("grading",), "balancing": "fixed", "tasks": ("grading",)}
    with pytest.raises(WrongUse, match="only cannot be"):
        StarterSettings(**{**fitting, **wrong})
