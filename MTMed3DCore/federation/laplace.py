"""A site's posterior near its weights: the diagonal of the empirical Fisher information, task by task.

For a task of which n studies have labels, and the loss L of a patch, the precision of a parameter is n times the mean
of the squared derivative of L over patches; the tasks' precisions add up (Kirkpatrick et al., arXiv 1612.00796). The
losses are those of training with equal weights, so that no moving balance of the tasks enters, and sites stay
comparable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from MTMed3DCore.federation.updates import STUDIES, Tensors
from MTMed3DCore.training.patches import Patch
from MTMed3DCore.training.trainer import Trainer

FLOOR = 1e-12
"""Least precision of a study: parameters without any gradient, as a bias before a norm, still have a mean."""


def precision(trainer: Trainer, patches: Iterable[Patch], counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Precision of every parameter, positive.

    Args:
        trainer: with the weights at which it is measured.
        patches: training patches; what one has no label for adds nothing.
        counts: studies with labels by task, and all as `STUDIES`.
    """
    network, tasks = trainer.network, trainer.settings.tasks
    names, parameters = zip(*network.named_parameters(), strict=True)
    squares = {task: [torch.zeros_like(parameter) for parameter in parameters] for task in tasks}
    seen = dict.fromkeys(tasks, 0)
    for patch in patches:
        image, target = patch.image[None].to(trainer.device), patch.target.to(trainer.device)
        known = [task for task in tasks if target.knows(task)]
        losses = trainer.loss(image, network(image), target)
        for task in known:
            gradients = torch.autograd.grad(losses[task], parameters, retain_graph=task != known[-1], allow_unused=True)
            for total, gradient in zip(squares[task], gradients, strict=True):
                if gradient is not None:
                    total += gradient.detach() ** 2
            seen[task] += 1
    result = {}
    for index, name in enumerate(names):
        parts = [squares[task][index] * (counts.get(task, 0) / seen[task]) for task in tasks if seen[task]]
        total = torch.stack(parts).sum(0) if parts else torch.zeros_like(parameters[index])
        result[name] = (total + counts[STUDIES] * FLOOR).cpu()
    return result


def pull_towards(trainer: Trainer, centre: Tensors, strength: Tensors, factor: float) -> None:
    """Add the prior to every step: the gradient of ``factor / 2 * sum(strength * (weights - centre) ** 2)``.

    It is added after the gradients of the losses were clipped, as FOLA's prior term on the client.
    """
    network: nn.Module = trainer.network
    held = {name: (centre[name].to(trainer.device), strength[name].to(trainer.device)) for name in strength}

    def add(*_: object) -> None:
        for name, parameter in network.named_parameters():
            if name in held and parameter.grad is not None:
                middle, weight = held[name]
                parameter.grad.add_(weight * (parameter.detach() - middle), alpha=factor)

    trainer.optimizer.register_step_pre_hook(add)
