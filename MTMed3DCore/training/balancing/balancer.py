"""What all ways of weighing have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

Losses = Mapping[str, torch.Tensor]
Gradients = Mapping[str, torch.Tensor]
"""Gradient of each task's loss on the shared parameters, flat; the mean over a whole batch, never over a part of it."""


class Balancer(Protocol):
    """Task weights that may move while a network trains; all their state is in ``state_dict``.

    Attributes:
        weights: (tasks,), in the order of the tasks.
        shared: of which part of the encoder `update` wants the gradients: ``"all"`` of it, its ``"last"`` layer, or
            ``""`` for none.
    """

    weights: torch.Tensor
    shared: str

    def total(self, losses: Losses) -> torch.Tensor:
        """The weighted sum, to which the weights are constants."""

    def observe(self, losses: Losses, present: Sequence[bool]) -> None:
        """Take note of the losses of every step."""

    def update(self, losses: Losses, gradients: Gradients, present: Sequence[bool]) -> None:
        """Move the weights.

        Args:
            losses: each task's loss, the mean over the batch's patches with labels for it.
            gradients: of these losses on the shared parameters; empty where `shared` is.
            present: which tasks have labels in the batch; the others keep their weight.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had not stopped."""

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """The reverse."""

    def to(self, device: Any) -> Any:
        """Move to a device."""


def weighted_sum(losses: Losses, tasks: Sequence[str], weights: torch.Tensor) -> torch.Tensor:
    """The sum of the losses with constant weights."""
    constants = weights.detach()
    return torch.stack([constants[i] * losses[task] for i, task in enumerate(tasks)]).sum()


def task_gradients(losses: Losses, shared: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradient of each task's loss on the shared parameters, flat; zero where it does not reach one.

    They are taken beside the parameters' own ``grad``, which stays as it is, and keep the losses' graph.
    """
    flat: dict[str, torch.Tensor] = {}
    for task, loss in losses.items():
        found = torch.autograd.grad(loss, list(shared), retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, shared, strict=True)]
        flat[task] = torch.cat([part.flatten().float() for part in parts])
    return flat
