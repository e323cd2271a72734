"""Weights of the shortest convex combination of the task gradients (Sener, Koltun; arXiv 1810.04650).

A step along the shortest combination of the gradients as they are lowers every task's loss, if it is not zero. But it
is never longer than the shortest gradient, whose task takes nearly all the weight: where one task is fitted, the others
stand still. So by default each gradient counts at length one where the weights are sought, and the weights found go to
the losses as they are. The price: of gradients of unlike length that oppose each other, the longer one may win.

For a handful of tasks the minimum is found exactly: it lies inside some face of the simplex, where the conditions are
linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import nn

from MTMed3DCore.training.balancing.balancer import Gradients, Losses, weighted_sum


def min_norm_weights(products: torch.Tensor) -> torch.Tensor:
    """Weights w >= 0 of sum 1 that minimise w' G w.

    Args:
        products: G (T, T), the inner products of the task gradients, float64 for accuracy.

    Returns:
        (T,).
    """
    count = len(products)
    best, lowest = torch.full((count,), 1 / count, dtype=products.dtype), torch.inf
    for size in range(1, count + 1):
        for face in combinations(range(count), size):
            index = list(face)
            # Inside a face the optimum meets G w = lambda 1 and sum w = 1; least squares also serve a singular G.
            system = torch.ones(size + 1, size + 1, dtype=products.dtype)
            system[:size, :size] = products[index][:, index]
            system[size, size] = 0.0
            wanted = torch.zeros(size + 1, 1, dtype=products.dtype)
            wanted[size] = 1.0
            raw = torch.linalg.lstsq(system, wanted, driver="gelsd").solution[:size, 0]
            weights = torch.zeros(count, dtype=products.dtype)
            weights[index] = raw
            value = float(weights @ products @ weights)
            if bool((weights >= -1e-9).all()) and value < lowest:
                best, lowest = weights.clamp(min=0), value
    return best / best.sum()


class MGDA(nn.Module):
    """Weights of the shortest combination of the tasks' gradients on the whole shared encoder.

    Args:
        tasks: names of the tasks.
        normalised: seek the weights for the gradients at length one; otherwise for the gradients themselves.
    """

    weights: torch.Tensor
    shared = "all"

    def __init__(self, tasks: Sequence[str], *, normalised: bool = True) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.normalised = normalised
        self.register_buffer("weights", torch.ones(len(self.tasks)))

    def total(self, losses: Losses) -> torch.Tensor:
        """The weighted sum of the losses."""
        return weighted_sum(losses, self.tasks, self.weights)

    def observe(self, losses: Losses, present: Sequence[bool]) -> None:
        """Nothing to note."""

    def update(self, losses: Losses, gradients: Gradients, present: Sequence[bool]) -> None:
        """Set the weights of the tasks with labels here; they sum to the number of those tasks, as fixed ones do."""
        rows = {i: gradients[self.tasks[i]].double().cpu() for i, here in enumerate(present) if here}
        if self.normalised:  # a task with no gradient at all has no direction; its weight stays, whatever it is
            rows = {i: row / row.norm() for i, row in rows.items() if row.any()}
        if len(rows) < 2:
            return
        stacked = torch.stack(list(rows.values()))
        self.weights[list(rows)] = (min_norm_weights(stacked @ stacked.T) * len(rows)).to(self.weights)
