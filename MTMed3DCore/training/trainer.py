"""One training step after another: network, losses, balance, optimiser, averaged weights."""

from __future__ import annotations

import math
import random
from typing import cast

import torch
from torch.optim.swa_utils import AveragedModel

from MTMed3DCore.networks import MultiTaskNetwork, build_network
from MTMed3DCore.training.balancing import make_balancer
from MTMed3DCore.training.losses import MultiTaskLoss
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.precision import guard_small_convolutions
from MTMed3DCore.training.settings import TrainSettings

LONGEST_DECAY = 0.995
"""Decay of the averaged weights late in a run."""


def running_mean(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Exponential mean whose memory grows with the run, so that the first steps are forgotten soon."""
    decay = min(LONGEST_DECAY, (1.0 + float(count)) / (10.0 + float(count)))
    return mean + (value - mean) * (1.0 - decay)


class Trainer:
    """Network, losses, balance, optimiser and averaged weights of one run.

    Args:
        settings: see `TrainSettings`.
        anchor_shapes: base shapes in voxels.
    """

    def __init__(self, settings: TrainSettings, anchor_shapes: list[list[float]]) -> None:
        torch.manual_seed(settings.seed)
        random.seed(settings.seed)
        self.settings = settings
        self.device = torch.device(settings.device)
        self.network: MultiTaskNetwork = build_network(
            "mtmed3d", settings.feature_size, settings.tasks, len(anchor_shapes)
        )
        self.network.to(self.device).train()
        guard_small_convolutions(self.network)
        self.loss = MultiTaskLoss(settings.tasks, anchor_shapes).to(self.device)
        self.balance = make_balancer(settings.balancing, settings.tasks, settings.fixed_weights)
        self.balance.to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = AveragedModel(self.network, avg_fn=running_mean)
        self.steps = 0

    @property
    def shared(self) -> list[torch.Tensor]:
        """What all tasks share: the whole encoder, or its last layer, the deepest merge, as the balancing wants."""
        if self.balance.whole_encoder:
            return list(self.network.encoder.parameters())
        return [self.network.encoder.get_parameter("layers4.0.downsample.reduction.weight")]

    def step(self, patches: list[Patch], progress: float) -> dict[str, float]:
        """One step of the optimiser.

        Args:
            patches: of one batch; they go through one by one, since each has its own number of boxes.
            progress: share of the run that is over, 0 to 1; sets the learning rate.

        Returns:
            The loss of each task, averaged over the patches that have labels for it.
        """
        warm = min(1.0, (self.steps + 1) / max(1, self.settings.warm_up))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, list[float]] = {task: [] for task in self.settings.tasks}
        for patch in patches:
            image, target = patch.image[None].to(self.device), patch.target.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                output = self.network(image)
            losses = self.loss(image, output, target)
            present = [target.knows(task) for task in self.settings.tasks]
            self.balance.observe(losses, present)
            if patch is patches[0] and self.steps % self.settings.balance_every == 0:
                self.balance.update(losses, self.shared, present)
            (self.balance.total(losses) / len(patches)).backward()
            for task, here in zip(self.settings.tasks, present, strict=True):
                if here:
                    sums[task].append(float(losses[task].detach()))
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.steps += 1
        return {task: sum(values) / len(values) for task, values in sums.items() if values}

    @property
    def averaged_network(self) -> MultiTaskNetwork:
        """The network with the running mean of its weights."""
        return cast(MultiTaskNetwork, self.average.module)
