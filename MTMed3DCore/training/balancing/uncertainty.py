"""Weights by homoscedastic uncertainty (Kendall, Gal, Cipolla; arXiv 1705.07115).

Each task has a log variance s; the total is the sum of exp(-s) L + s. Its gradient on s, 1 - exp(-s) L, needs no
backward pass, so s is moved here, with an optimiser of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from MTMed3DCore.training.balancing.balancer import Gradients, Losses, weighted_sum
from MTMed3DCore.training.balancing.per_task import PerTask


class UncertaintyWeights(nn.Module):
    """Weights exp(-s), whose resting point is the inverse of each task's loss.

    Args:
        tasks: names of the tasks.
        learning_rate: of the log variances.
    """

    shared = ""

    def __init__(self, tasks: Sequence[str], *, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.log_variances = PerTask(len(self.tasks), 0.0, learning_rate)

    @property
    def weights(self) -> torch.Tensor:
        """exp(-s) of each task."""
        return torch.exp(-self.log_variances.values())

    def total(self, losses: Losses) -> torch.Tensor:
        """The weighted sum of the losses; the terms s alone do not reach the network and are left out."""
        return weighted_sum(losses, self.tasks, self.weights)

    def observe(self, losses: Losses, present: Sequence[bool]) -> None:
        """Nothing to note."""

    def update(self, losses: Losses, gradients: Gradients, present: Sequence[bool]) -> None:
        """One step of the log variances of the tasks with labels here; the others stay."""
        values = torch.stack([losses[task].detach().float() for task in self.tasks])
        slopes = 1 - self.weights * values
        self.log_variances.move({place: slopes[place] for place, here in enumerate(present) if here})
