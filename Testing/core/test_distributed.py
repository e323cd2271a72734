"""Two processes under torchrun train as one would with the same batches, and survive a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.training.distributed import Team, join_team
from MTMed3DCore.training.feeding import check_share
from MTMed3DCore.training.losses import Target
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.settings import CaseSettings, TrainSettings
from MTMed3DCore.training.trainer import Trainer
from Testing.training_runs import SMALL, four_studies, kill_at_random, with_sources

ANCHORS = [[8.0, 8.0, 8.0]]
SETTINGS = TrainSettings(feature_size=12, patch=64, wide_patch=64, warm_up=1, balance_every=1)
RANKS = """
import sys
from pathlib import Path
import torch
from MTMed3DCore.training.distributed import join_team
from Testing.core.test_distributed import train_a_little
with join_team("cpu") as team:
    for balancing in ("gradnorm", "mgda"):
        torch.save(train_a_little(balancing, team), Path(sys.argv[1]) / f"{balancing}-{team.rank}.pt")
"""


def made_patches() -> list[Patch]:
    """Four small patches; the second has no grade and the third no regions."""
    generator = torch.Generator().manual_seed(1)
    patches = []
    for number in range(4):
        image = torch.randn(4, 64, 32, 32, generator=generator)
        regions = (torch.rand(1, 3, 64, 32, 32, generator=generator) > 0.8).float()
        corner = 4.0 * number
        boxes = torch.tensor([[corner, corner, corner, corner + 9, corner + 8, corner + 7]])
        grade = None if number == 1 else number % 2
        patches.append(Patch(image, Target(None if number == 2 else regions, boxes, grade)))
    return patches


def train_a_little(balancing: str, team: Team) -> dict[str, torch.Tensor]:
    """This process's share of the batches; all weights, the task weights and the losses that were told."""
    trainer = Trainer(replace(SETTINGS, balancing=balancing), ANCHORS, team)
    if balancing == "gradnorm":
        trainer.balance.warm_up = 1
    patches = made_patches()
    batches = [patches[:2], patches[2:]] if balancing == "gradnorm" else [patches]
    for number, batch in enumerate(batches):
        told = trainer.step(list(team.share(batch)), number / len(batches))
    state = {f"average.{name}": tensor for name, tensor in trainer.averaged_network.state_dict().items()}
    state |= {f"network.{name}": tensor for name, tensor in trainer.network.state_dict().items()}
    return {**state, "tasks": trainer.balance.weights.detach(), "told": torch.tensor(list(told.values()))}


def torchrun(*arguments: str | Path) -> list[str]:
    """The command that starts two processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, *map(str, arguments)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, torch.Tensor]]:
    """What each of two processes ended with, by balancing and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "ranks.py").write_text(RANKS)
    subprocess.run(torchrun(folder / "ranks.py", folder), check=True, env=with_sources())
    return lambda balancing, rank: torch.load(folder / f"{balancing}-{rank}.pt")


@pytest.mark.parametrize("balancing", ["gradnorm", "mgda"])
def test_two_processes_end_with_equal_weights_and_with_those_of_one_process_with_the_whole_batch(ranks, balancing):
    first, second = ranks(balancing, 0), ranks(balancing, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = train_a_little(balancing, Team())
    assert first["tasks"].tolist() != [1.0, 1.0, 1.0]
    torch.testing.assert_close(first["tasks"], alone["tasks"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["told"], alone["told"], rtol=1e-4, atol=1e-5)
    # Two steps of AdamW move a weight by 8e-4 at most; rounding may turn the sign of a gradient that is all but zero.
    weights = [name for name in first if name.startswith(("network", "average")) and first[name].is_floating_point()]
    apart = torch.cat([(first[name] - alone[name]).abs().flatten() for name in weights])
    assert apart.mean() < 1e-7
    assert apart.max() < 2e-3


def test_a_team_of_one_shares_nothing_and_two_deal_out_patches_in_turn():
    with join_team("cpu") as team:
        assert team == Team()
    assert [list(Team(rank, 2).share(range(5))) for rank in (0, 1)] == [[0, 2, 4], [1, 3]]
    assert Team().rows(torch.arange(3)).tolist() == [0, 1, 2]


def test_a_batch_that_cannot_be_dealt_out_evenly_and_one_gpu_for_two_are_refused(monkeypatch):
    with pytest.raises(WrongUse, match="batch of 3 patches cannot be shared by 2"):
        check_share(CaseSettings(batch=3), Team(0, 2))
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongUse, match="cannot share the device cuda:0"), join_team("cuda:0"):
        pass


def test_two_processes_killed_at_a_random_step_resume_to_the_same_weights_bit_for_bit(tmp_path):
    four_studies(tmp_path / "studies")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(replace(SMALL, batch=2).to_dict()))
    given = [
        "train",
        tmp_path / "studies" / "list.json",
        "--settings",
        settings,
        "--cache",
        tmp_path / "cache",
        "--quiet",
    ]
    command = torchrun("-m", "MTMed3DCore", *given)
    whole, killed = tmp_path / "a" / "run", tmp_path / "b" / "run"
    subprocess.run([*command, "-o", whole], check=True, env=with_sources())
    kill_at_random([*command, "-o", str(killed)], killed / "history.jsonl", SMALL.steps)
    assert not (killed / "bundle").exists()
    subprocess.run([*command, "-o", killed, "--resume"], check=True, env=with_sources())
    expected, resumed = (load_file(run / "bundle" / "models" / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert (whole / "history.jsonl").read_text() == (killed / "history.jsonl").read_text()
    sessions = [json.loads(row) for row in (killed / "sessions.jsonl").read_text().splitlines()]
    assert [row["processes"] for row in sessions] == [2, 2]
