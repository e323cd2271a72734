"""One learned number for each task, since not every batch has labels for every task."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn


class PerTask(nn.Module):
    """Numbers that torch's Adam moves, each as if it were alone: one without a gradient rests, its moments as well.

    Args:
        count: of the tasks.
        value: of every number at first.
        learning_rate: length of a number's first move.
    """

    def __init__(self, count: int, value: float, learning_rate: float) -> None:
        super().__init__()
        self.numbers = nn.ParameterList(nn.Parameter(torch.tensor(value)) for _ in range(count))
        self.optimizer = torch.optim.Adam(self.numbers.parameters(), lr=learning_rate)

    def values(self) -> torch.Tensor:
        """The numbers (T,), without a graph."""
        return torch.stack([number.detach() for number in self.numbers])

    def move(self, slopes: Mapping[int, torch.Tensor]) -> None:
        """One step against the slopes of some tasks, by their places."""
        self.optimizer.zero_grad()
        for place, slope in slopes.items():
            self.numbers[place].grad = slope.to(self.numbers[place])
        self.optimizer.step()

    @torch.no_grad()
    def put(self, values: Mapping[int, torch.Tensor]) -> None:
        """Set the numbers of some tasks, by their places."""
        for place, value in values.items():
            self.numbers[place].copy_(value)

    def get_extra_state(self) -> dict[str, Any]:
        """The moments."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """The reverse."""
        self.optimizer.load_state_dict(deepcopy(dict(state)))
