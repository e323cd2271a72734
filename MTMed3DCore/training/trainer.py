"""One training step after another: network, losses, balance, optimiser, averaged weights."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.networks import TaskNetwork, find_family
from MTMed3DCore.networks.ownership import owner
from MTMed3DCore.training.balancing import make_balancer, task_gradients
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.patches import Batch
from MTMed3DCore.training.precision import guard_small_convolutions
from MTMed3DCore.training.recompute import recompute_activations
from MTMed3DCore.training.settings import TrainSettings

LONGEST_DECAY = 0.995
"""Decay of the averaged weights late in a run."""
ALONE = Team()


def running_mean(mean: torch.Tensor, value: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Exponential mean whose memory grows with the run, so that the first steps are forgotten soon."""
    decay = min(LONGEST_DECAY, (1.0 + float(count)) / (10.0 + float(count)))
    return mean + (value - mean) * (1.0 - decay)


class Trainer:
    """Network, losses, balance, optimiser and averaged weights of one run.

    Args:
        settings: see `TrainSettings`.
        anchor_shapes: base shapes in voxels.
        team: the processes that train together; all must construct their trainer.
        network, loss: where they are not those of brain studies that the settings name; the loss is called with image,
            output and target, and gives one scalar for each task.
    """

    def __init__(
        self,
        settings: TrainSettings,
        anchor_shapes: list[list[float]],
        team: Team = ALONE,
        *,
        network: TaskNetwork | None = None,
        loss: nn.Module | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        random.seed(settings.seed)
        self.settings = settings
        self.team = team
        self.device = team.device(settings.device)
        family = find_family(settings.network_family)
        self.network: TaskNetwork = network or family.for_brain(
            settings.feature_size, settings.tasks, len(anchor_shapes), settings.patch, settings.network_options
        )
        self.network.to(self.device).train()
        _hold_others(self.network, settings)
        guard_small_convolutions(self.network)
        self.loss = (loss or family.make_loss(settings.trained, anchor_shapes)).to(self.device)
        self.balance = make_balancer(settings.balancing, settings.trained, settings.fixed_weights)
        self.balance.to(self.device)
        moving = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(moving, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.average = AveragedModel(self.network, avg_fn=running_mean)
        if settings.gradient_checkpointing:
            recompute_activations(self.network)
        self.parallel = team.parallel(self.network, self.device)
        self.steps = 0

    @property
    def shared(self) -> list[torch.Tensor]:
        """What all tasks share: the whole encoder, or its last layer, as the balancing wants."""
        if self.balance.shared == "all":
            return list(self.network.encoder.parameters())
        return self.network.last_shared()

    def step(self, patches: Sequence[Batch], progress: float) -> dict[str, float]:
        """One step of the optimiser.

        Args:
            patches: this process's share of the batch, as many as in every other; they go through one by one, since
                each has its own number of boxes.
            progress: share of the run that is over, 0 to 1; sets the learning rate.

        Returns:
            The loss of each task, averaged over the patches of the whole batch that have labels for it.

        Raises:
            WrongUse: ``training-diverged``, in every process alike; the weights and the optimiser are as they were.
        """
        settings = self.settings
        warm = min(1.0, (self.steps + 1) / max(1, settings.warm_up))
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * progress)) + 1e-6
        balance_now = self.steps % settings.balance_every == 0
        if balance_now and self.balance.shared:
            self._balance_gradients(patches)
        self.optimizer.zero_grad(set_to_none=True)
        rows = []
        for patch in patches:
            with self._averaging_gradients(patch is patches[-1]):
                losses, row = self._losses(self.parallel, patch)
                (self.balance.total(losses) / len(patches)).backward()
            rows.append(row)
        told = self.team.rows(torch.stack(rows))
        self._check("loss", ~told.isinf().any(0))
        parameters = list(self.network.parameters())
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not norm.isfinite():  # the gradients are averaged over the processes, so that all of them come to this norm
            self._refuse("gradient", self._broken_parts())
        clip_grads_with_norm_(parameters, settings.clip, norm)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        self.steps += 1
        return self._note(told, balance_now and not self.balance.shared)

    def _losses(self, network: nn.Module, patch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """A patch's losses with their graph, and their values (tasks,).

        Among the values NaN stands for a task without a label, and only for that: a loss that is none is infinite.
        """
        image, target = patch.batch.to(self.device), patch.target.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            output = network(image)
        losses = self.loss(image, output, target)
        values = [_value(losses[t]) if target.knows(t) else _unknown(image) for t in self.settings.trained]
        return losses, torch.stack(values)

    def _averaging_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step, in the backward pass of the last patch."""
        wrapped = isinstance(self.parallel, DistributedDataParallel)
        return self.parallel.no_sync() if wrapped and not last else nullcontext()  # type: ignore[operator]

    def _balance_gradients(self, patches: Sequence[Batch]) -> None:
        """Move the task weights by the gradients of the whole batch on what the tasks share.

        A pass of its own, before that of the step: the weights are then those of this very batch, no graph is kept
        for longer than one patch, and nothing flows into the network's gradients. The gradient of a task is averaged
        over all patches of all processes before anything is made of it: the mean of norms is not the norm of the mean.
        """
        tasks, shared = self.settings.trained, self.shared
        gradients = torch.zeros(len(tasks), sum(parameter.numel() for parameter in shared), device=self.device)
        values, counts = (torch.zeros(len(tasks), device=self.device) for _ in range(2))
        for patch in patches:
            losses, row = self._losses(self.network, patch)
            known = ~row.isnan()
            values += torch.where(known, row, 0.0)
            counts += known
            for index, task in enumerate(tasks):
                if known[index]:
                    gradients[index] += task_gradients({task: losses[task]}, shared)[task]
        for sums in (gradients, values, counts):
            self.team.total(sums)
        self._check("loss", values.isfinite())
        self._check("gradient", gradients.isfinite().all(1))
        number = counts.clamp(min=1)
        means = dict(zip(tasks, values / number, strict=True))
        self.balance.update(means, dict(zip(tasks, gradients / number[:, None], strict=True)), (counts > 0).tolist())

    def _note(self, rows: torch.Tensor, balance_by_losses: bool) -> dict[str, float]:
        """Show the losses (patches, tasks) of a whole batch to the balance; their means over what is known."""
        tasks = self.settings.trained
        for row in rows:
            self.balance.observe(dict(zip(tasks, row, strict=True)), (~row.isnan()).tolist())
        known = (~rows.isnan()).any(0).tolist()
        means = dict(zip(tasks, rows.nanmean(0), strict=True))
        if balance_by_losses:
            self.balance.update(means, {}, known)
        return {task: float(means[task]) for task, here in zip(tasks, known, strict=True) if here}

    def _check(self, what: str, finite: torch.Tensor) -> None:
        """Refuse to go on unless every task is `finite` (tasks,), which all processes hold alike."""
        broken = [task for task, fine in zip(self.settings.trained, finite.tolist(), strict=True) if not fine]
        if broken:
            self._refuse(what, broken)

    def _broken_parts(self) -> list[str]:
        """The tasks whose own decoders have a gradient that is not finite; without one, what they share."""
        gradients = {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}
        broken = {owner(name, self.settings.tasks) for name, each in gradients.items() if not each.isfinite().all()}
        return [task for task in self.settings.tasks if task in broken] or ["what the tasks share"]

    def _refuse(self, what: str, whose: Iterable[str]) -> NoReturn:
        settings = self.settings
        text = f"Training has diverged: at step {self.steps + 1} the {what} of {', '.join(whose)} is not finite."
        other = " or with --precision fp32" if settings.precision != "fp32" else ""
        raise WrongUse(
            "training-diverged",
            text,
            f"Train anew with a --learning-rate below {settings.learning_rate:g}{other}. What the run saved last is "
            "untouched: with the settings as they are, --resume goes on from there.",
        )

    @property
    def averaged_network(self) -> TaskNetwork:
        """The network with the running mean of its weights."""
        return cast(TaskNetwork, self.average.module)


def _hold_others(network: TaskNetwork, settings: TrainSettings) -> None:
    """Let only the decoders of the trained tasks move where not all tasks are trained."""
    if set(settings.trained) == set(settings.tasks):
        return
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(owner(name, settings.tasks) in settings.trained)


def _value(loss: torch.Tensor) -> torch.Tensor:
    return loss.detach().float().nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _unknown(like: torch.Tensor) -> torch.Tensor:
    return torch.full((), torch.nan, device=like.device)
