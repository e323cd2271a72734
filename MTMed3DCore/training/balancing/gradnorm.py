"""GradNorm: task weights that keep the tasks' gradients on the shared encoder in balance.

Chen et al., GradNorm (arXiv 1711.02257), in its first-order form. Because a weight is a non-negative scalar,
``||grad(w L)|| = w ||grad L||``; the norms are taken without a graph through them and the gradient with respect to the
weights is exact. Nothing of it flows into the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from MTMed3DCore.training.balancing.balancer import Gradients, Losses, weighted_sum
from MTMed3DCore.training.balancing.per_task import PerTask

SMALLEST_WEIGHT = 1e-3


def gradnorm_loss(weights: torch.Tensor, norms: torch.Tensor, ratios: torch.Tensor, alpha: float) -> torch.Tensor:
    """What GradNorm lets the weights descend: sum over the tasks of ``|G - mean(G) r ** alpha|`` (eq. 2).

    Args:
        weights: (T,), w.
        norms: (T,), lengths of the gradients of the unweighted losses; ``G = w * norms``.
        ratios: (T,), each loss by its initial one; ``r`` is that by its mean over the tasks, small where a task trains
            quickly.
        alpha: strength of the pull towards equal training rates.

    Returns:
        A scalar with a graph to the weights; to it the targets ``mean(G) r ** alpha`` are constants.
    """
    weighted = weights * norms
    targets = weighted.detach().mean() * (ratios / ratios.mean()) ** alpha
    return (weighted - targets).abs().sum()


class GradNorm(nn.Module):
    """Weights of the tasks, updated from the norms of each task's gradient on one shared parameter.

    The initial losses and the weights belong to the whole run: a checkpoint of this module holds both.

    Args:
        tasks: names of the tasks.
        alpha: strength of the pull towards equal training rates; 0 asks for equal norms.
        learning_rate: of the weights.
        warm_up: steps with labels whose mean is taken as the initial loss; a single first batch is a poor reference.
    """

    initial: torch.Tensor
    seen: torch.Tensor
    shared = "last"

    def __init__(
        self, tasks: Sequence[str], *, alpha: float = 0.12, learning_rate: float = 0.01, warm_up: int = 10
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.alpha = alpha
        self.warm_up = warm_up
        self.entries = PerTask(len(self.tasks), 1.0, learning_rate)
        self.register_buffer("initial", torch.zeros(len(self.tasks)))
        self.register_buffer("seen", torch.zeros(len(self.tasks)))

    @property
    def weights(self) -> torch.Tensor:
        """Of the tasks (T,)."""
        return self.entries.values()

    def total(self, losses: Losses) -> torch.Tensor:
        """The weighted sum of the losses; the weights are constants to it."""
        return weighted_sum(losses, self.tasks, self.weights)

    def observe(self, losses: Losses, present: Sequence[bool]) -> None:
        """Take the losses of a step into the initial losses, as long as the warm-up lasts.

        Args:
            losses: each task's loss.
            present: which tasks have labels in this batch.
        """
        for i, here in enumerate(present):
            if here and self.seen[i] < self.warm_up:
                self.seen[i] += 1
                self.initial[i] += (losses[self.tasks[i]].detach().float() - self.initial[i]) / self.seen[i]

    def update(self, losses: Losses, gradients: Gradients, present: Sequence[bool]) -> None:
        """Move the weights by one step, once every task with labels here has its initial loss.

        Args:
            losses: each task's loss.
            gradients: of the losses on the last layer that all tasks share.
            present: which tasks have labels in this batch; the others keep their weight, and these the sum of theirs.
        """
        there = [i for i, here in enumerate(present) if here]
        if len(there) < 2 or bool((self.seen[there] < self.warm_up).any()):
            return
        values = torch.stack([losses[self.tasks[i]].detach().float() for i in there])
        norms = torch.stack([gradients[self.tasks[i]].norm().float() for i in there])
        ratios = values / self.initial[there].clamp(min=1e-8)
        weights = self.weights[there].requires_grad_()
        (slopes,) = torch.autograd.grad(gradnorm_loss(weights, norms, ratios, self.alpha), weights)
        self.entries.move(dict(zip(there, slopes, strict=True)))
        moved = self.weights[there].clamp(min=SMALLEST_WEIGHT)
        self.entries.put(dict(zip(there, moved * (weights.detach().sum() / moved.sum()), strict=True)))
