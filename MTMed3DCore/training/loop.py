"""The training loop of the starter: synthetic studies in, a network with averaged weights out."""

from __future__ import annotations

import json
import math
import random
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from MTMed3DCore.allocator import keep_freed_memory
from MTMed3DCore.networks import TASKS, MultiTaskNetwork, build_network
from MTMed3DCore.synthetic import make_study
from MTMed3DCore.training.anchors import fit_anchor_shapes
from MTMed3DCore.training.balancing import GradNorm
from MTMed3DCore.training.losses import MultiTaskLoss
from MTMed3DCore.training.patches import Patch, SyntheticPatches
from MTMed3DCore.training.precision import guard_small_convolutions

LONGEST_DECAY = 0.995
"""Decay of the averaged weights late in a run."""
REUSED_PATCHES = 400
"""Patches kept for a second look while the next study is still being made."""


@dataclass(frozen=True)
class TrainingSettings:
    """How the starter is trained.

    Args:
        minutes: wall-clock time; the learning rate falls to zero over it.
        feature_size: of the network.
        spacing_mm: working spacing.
        study_shape: voxels of a synthetic study.
        patch: side of most training patches in voxels, a multiple of 32.
        wide_patch: side of the others, that of the windows in use: norms over a window depend on how much it holds.
        wide_share: share of the wide ones.
        learning_rate: highest rate of AdamW.
        batch: patches whose gradients are summed for a step.
        balance_every: steps between two updates of the task weights.
        family: of synthetic studies.
        seed: of everything random but the thread timing.
        precision: ``"bf16"`` or ``"fp32"``.
        device: torch's name of it.
    """

    minutes: float = 30.0
    feature_size: int = 12
    spacing_mm: float = 2.0
    study_shape: tuple[int, int, int] = (80, 96, 80)
    patch: int = 64
    wide_patch: int = 96
    wide_share: float = 0.15
    learning_rate: float = 1.5e-3
    batch: int = 1
    balance_every: int = 16
    family: str = "default"
    seed: int = 1000
    precision: str = "fp32"
    device: str = "cpu"


def anchors_for(settings: TrainingSettings, studies: int = 60) -> list[list[float]]:
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


def running_mean(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Exponential mean whose memory grows with the run, so that the first steps are forgotten soon."""
    decay = min(LONGEST_DECAY, (1.0 + float(count)) / (10.0 + float(count)))
    return mean + (value - mean) * (1.0 - decay)


class Trainer:
    """Network, losses, balance, optimiser and averaged weights of one run.

    Args:
        settings: see `TrainingSettings`.
        anchor_shapes: base shapes in voxels.
    """

    def __init__(self, settings: TrainingSettings, anchor_shapes: list[list[float]]) -> None:
        torch.manual_seed(settings.seed)
        random.seed(settings.seed)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.network: MultiTaskNetwork = build_network("mtmed3d", settings.feature_size, TASKS, len(anchor_shapes))
        self.network.to(self.device).train()
        guard_small_convolutions(self.network)
        self.loss = MultiTaskLoss(TASKS, anchor_shapes).to(self.device)
        self.balance = GradNorm(TASKS).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self.average = AveragedModel(self.network, avg_fn=running_mean)
        self.steps = 0

    @property
    def shared(self) -> torch.Tensor:
        """The parameter of the last layer that all three tasks share: the encoder's deepest merge."""
        return self.network.encoder.get_parameter("layers4.0.downsample.reduction.weight")

    def step(self, patches: list[Patch], progress: float) -> dict[str, float]:
        """One step of the optimiser.

        Args:
            patches: of one batch; they go through one by one, since each has its own number of boxes.
            progress: share of the run that is over, 0 to 1; sets the learning rate.

        Returns:
            The loss of each task, averaged over the patches that have labels for it.
        """
        warm = min(1.0, (self.steps + 1) / 40)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, list[float]] = {task: [] for task in TASKS}
        for patch in patches:
            image, target = patch.image[None].to(self.device), patch.target.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                output = self.network(image)
            losses = self.loss(image, output, target)
            present = [target.regions is not None, target.boxes is not None, target.grade is not None]
            self.balance.observe(losses, present)
            if patch is patches[0] and self.steps % self.settings.balance_every == 0:
                self.balance.update(losses, [self.shared], present)
            (self.balance.total(losses) / len(patches)).backward()
            for task, here in zip(TASKS, present, strict=True):
                if here:
                    sums[task].append(float(losses[task].detach()))
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.steps += 1
        return {task: sum(values) / len(values) for task, values in sums.items() if values}

    @property
    def averaged_network(self) -> MultiTaskNetwork:
        """The network with the running mean of its weights."""
        return cast(MultiTaskNetwork, self.average.module)


def train_starter(settings: TrainingSettings, folder: Path) -> tuple[Trainer, list[list[float]]]:
    """Train for the given time; writes ``settings.json``, ``history.jsonl`` and ``average.pt`` into `folder`.

    Returns:
        The trainer as it ended, and the anchor shapes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    shapes = anchors_for(settings)
    (folder / "settings.json").write_text(json.dumps({**asdict(settings), "anchor_shapes": shapes}, indent=1))
    trainer = Trainer(settings, shapes)
    sides = (settings.patch, settings.wide_patch)
    stream = SyntheticPatches(
        settings.seed, settings.spacing_mm, settings.study_shape, sides, settings.wide_share, 2, settings.family
    )
    loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=4)
    recent: deque[Patch] = deque(maxlen=REUSED_PATCHES)
    start, end = time.monotonic(), settings.minutes * 60
    saved = 0.0
    with (folder / "history.jsonl").open("w") as history:
        for patch in loader:
            recent.append(patch)
            again = random.sample(list(recent), min(settings.batch, len(recent)))
            for batch in ([patch], again) if settings.batch == 1 else (again,):
                elapsed = time.monotonic() - start
                losses = trainer.step(batch, min(1.0, elapsed / end))
                row: dict[str, Any] = {"s": round(elapsed), "step": trainer.steps}
                row |= {task: round(value, 4) for task, value in losses.items()}
                row["weights"] = [round(float(w), 3) for w in trainer.balance.weights.detach()]
                history.write(json.dumps(row) + "\n")
            history.flush()
            if elapsed - saved > 120 or elapsed >= end:
                saved = elapsed
                temporary = folder / "average.pt.tmp"
                torch.save(trainer.averaged_network.state_dict(), temporary)
                temporary.replace(folder / "average.pt")
            if elapsed >= end:
                break
    return trainer, shapes
