"""Weights that do not move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from MTMed3DCore.training.balancing.balancer import Gradients, Losses, weighted_sum


class FixedWeights(nn.Module):
    """Weights given once.

    Args:
        tasks: names of the tasks.
        given: weight by task; 1 for a task that is not named.
    """

    weights: torch.Tensor
    shared = ""

    def __init__(self, tasks: Sequence[str], given: Mapping[str, float]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.register_buffer("weights", torch.tensor([float(given.get(task, 1.0)) for task in tasks]))

    def total(self, losses: Losses) -> torch.Tensor:
        """The weighted sum of the losses."""
        return weighted_sum(losses, self.tasks, self.weights)

    def observe(self, losses: Losses, present: Sequence[bool]) -> None:
        """Nothing to note."""

    def update(self, losses: Losses, gradients: Gradients, present: Sequence[bool]) -> None:
        """Nothing to move."""
