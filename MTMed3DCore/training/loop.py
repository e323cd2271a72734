"""The training loop of the starter: synthetic studies in, a network with averaged weights out."""

from __future__ import annotations

import json
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from MTMed3DCore.allocator import keep_freed_memory
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training.anchors import fit_anchor_shapes
from MTMed3DCore.training.patches import Patch, SyntheticPatches
from MTMed3DCore.training.settings import StarterSettings
from MTMed3DCore.training.trainer import Trainer
from MTMed3DCore.whole_file import writing_whole

REUSED_PATCHES = 400
"""Patches kept for a second look while the next study is still being made."""
SAVE_EVERY_S = 120.0
SNAPSHOTS = (0.4, 0.6, 0.8, 1.0)
"""Shares of a run after which its averaged weights are kept: which of them is best is for other studies to say."""


def anchors_for(settings: StarterSettings, studies: int = 60) -> list[list[float]]:
    """Anchor shapes fitted to the boxes of synthetic studies that training does not see, on a coarse grid."""
    coarse = 4.0
    factor = coarse / settings.spacing_mm
    shape = tuple(max(16, round(n / factor)) for n in settings.study_shape)
    sizes = [
        box.size * factor
        for seed in range(studies)
        for box in make_study(-1 - seed, (shape[0], shape[1], shape[2]), coarse, family=settings.family).boxes
    ]
    return fit_anchor_shapes(sizes)


@dataclass(frozen=True)
class StarterRun:
    """What a run of the starter's training leaves in its folder.

    Args:
        settings: how it was trained.
        anchor_shapes: in voxels.
        weights: averaged.
        steps: of this run and of those that it went on from.
        minutes: likewise.
        seeds: first study of each of these runs, in their order.
        mean_of: steps of the runs of whose weights these are the mean, or from whose mean the run went on.
    """

    settings: StarterSettings
    anchor_shapes: list[list[float]]
    weights: dict[str, torch.Tensor]
    steps: int
    minutes: float
    seeds: tuple[int, ...] = ()
    mean_of: tuple[int, ...] = ()

    @classmethod
    def read(cls, folder: Path, share: float | None = None) -> StarterRun:
        """The run in a folder, finished or not.

        Args:
            folder: that `train_starter` wrote.
            share: one of `SNAPSHOTS`, for the run as it was then; None for its last weights.

        Raises:
            InputRefused: the folder holds no run.
        """
        try:
            record = json.loads((folder / "settings.json").read_text())
            weights = torch.load(folder / (_snapshot(share) if share else "average.pt"), weights_only=True)
            lines = (folder / "history.jsonl").read_text().splitlines()
        except FileNotFoundError as missing:
            text = f"{folder} holds no run of the starter: {missing.filename} is missing."
            raise InputRefused("run-missing", text, "Name the folder that an earlier run wrote.") from missing
        history = [json.loads(line) for line in lines]
        last = history[-1] if share is None else next(row for row in history if row["progress"] >= share)
        earlier = {"steps": 0, "minutes": 0.0, "seeds": [], "mean_of": [], **record.pop("earlier", {})}
        shapes = record.pop("anchor_shapes")
        steps, minutes = earlier["steps"] + last["step"], earlier["minutes"] + last["s"] / 60
        settings = StarterSettings.from_dict(record)
        seeds = (*earlier["seeds"], settings.seed)
        return cls(settings, shapes, weights, steps, minutes, seeds, tuple(earlier["mean_of"]))


def averaged(runs: Sequence[StarterRun]) -> StarterRun:
    """The last of several runs with the mean of all their weights.

    Runs that go on from each other end in one valley of the loss, and the mean of their weights errs less outside what
    each was trained on than any of them does (Wortsman et al., arXiv 2203.05482 and 2109.01903).

    Raises:
        InputRefused: runs whose networks or anchors are not the same.
    """
    *others, last = runs
    for number, other in enumerate(others, start=1):
        shapes = [{name: tensor.shape for name, tensor in run.weights.items()} for run in (other, last)]
        if shapes[0] != shapes[1] or other.anchor_shapes != last.anchor_shapes:
            text = f"Run {number} of {len(runs)} has another network or other anchors than the last."
            raise InputRefused("runs-unlike", text, "Average runs that went on from each other.")
    weights = {
        name: torch.stack([run.weights[name] for run in runs]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in last.weights.items()
    }
    return replace(last, weights=weights, mean_of=tuple(run.steps for run in runs) if others else last.mean_of)


def _snapshot(share: float) -> str:
    return f"average-{share:.0%}.pt"


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    with writing_whole(path) as stream:
        torch.save(weights, stream)


def _start_from(trainer: Trainer, earlier: StarterRun) -> None:
    """Give a fresh trainer an earlier run's weights; parts that the earlier network lacked stay fresh."""
    own = trainer.network.state_dict()
    fitting = {k: v for k, v in earlier.weights.items() if k in own and v.shape == own[k].shape}
    trainer.network.load_state_dict(fitting, strict=False)
    trainer.averaged_network.load_state_dict(trainer.network.state_dict())


def train_starter(settings: StarterSettings, folder: Path, earlier: StarterRun | None = None) -> None:
    """Train for the given time, or number of steps.

    Args:
        settings: of this run.
        folder: of this run; gets ``settings.json``, ``history.jsonl``, ``average.pt`` and a file for each snapshot.
        earlier: a run to go on from, with its weights and anchors but other studies and a learning rate of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    shapes = anchors_for(settings) if earlier is None else earlier.anchor_shapes
    record = {**settings.to_dict(), "anchor_shapes": shapes}
    if earlier is not None:
        record["earlier"] = {"steps": earlier.steps, "minutes": earlier.minutes, "seeds": list(earlier.seeds)}
        record["earlier"]["mean_of"] = list(earlier.mean_of)
    (folder / "settings.json").write_text(json.dumps(record, indent=1))
    trainer = Trainer(settings, shapes)
    if earlier is not None:
        _start_from(trainer, earlier)
    sides = (settings.patch, settings.wide_patch)
    stream = SyntheticPatches(
        settings.seed,
        settings.spacing_mm,
        settings.study_shape,
        sides,
        settings.wide_share,
        2,
        settings.family,
        settings.device,
    )
    marks = deque(SNAPSHOTS)
    start, saved, progress = time.monotonic(), 0.0, 0.0
    with (folder / "history.jsonl").open("w", buffering=1) as history:
        for batch in _batches(stream, settings):
            elapsed = time.monotonic() - start
            progress = (trainer.steps + 1) / settings.steps if settings.steps else elapsed / (settings.minutes * 60)
            losses = trainer.step(batch, min(1.0, progress))
            row: dict[str, Any] = {"s": round(elapsed), "step": trainer.steps, "progress": progress}
            row |= {task: round(value, 4) for task, value in losses.items()}
            row["weights"] = [round(float(w), 3) for w in trainer.balance.weights.detach()]
            history.write(json.dumps(row) + "\n")
            while marks and progress >= marks[0]:
                _save(trainer.averaged_network.state_dict(), folder / _snapshot(marks.popleft()))
            if elapsed - saved > SAVE_EVERY_S or progress >= 1:
                saved = elapsed
                _save(trainer.averaged_network.state_dict(), folder / "average.pt")
            if progress >= 1:
                break


def _batches(stream: SyntheticPatches, settings: StarterSettings) -> Iterator[list[Patch]]:
    """Batches without end: each new patch, and while the next study is being made some of the latest again.

    A process of its own makes the studies on a CPU; a GPU makes them between the steps.
    """
    recent: deque[Patch] = deque(maxlen=REUSED_PATCHES)
    pick = random.Random(settings.seed)
    apart = torch.device(stream.device).type == "cpu"
    for patch in DataLoader(stream, batch_size=None, num_workers=int(apart), prefetch_factor=4 if apart else None):
        recent.append(patch)
        if settings.batch == 1:
            yield [patch]
        yield pick.sample(list(recent), min(settings.batch, len(recent)))
