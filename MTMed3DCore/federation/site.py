"""One hospital: its studies, and what it does with a model that the server sends. Nothing is kept between rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from MTMed3DCore.datalist import Case
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.federation.laplace import precision, pull_towards
from MTMed3DCore.federation.measuring import Row, measure, summarise
from MTMed3DCore.federation.plan import Plan
from MTMed3DCore.federation.privacy import blur
from MTMed3DCore.federation.updates import STUDIES, GlobalState, SiteUpdate, is_statistic
from MTMed3DCore.networks.ownership import owner
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.examples import ExampleCache
from MTMed3DCore.training.feeding import CasePatches, loader_from, trains
from MTMed3DCore.training.settings import CaseSettings
from MTMed3DCore.training.trainer import Trainer


@dataclass(frozen=True)
class Site:
    """A hospital's share of a federation.

    Args:
        name: unique in the federation.
        training: studies to learn from.
        validation: studies on which the global model is measured here.
        cache: where the studies are prepared.
    """

    name: str
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    cache: ExampleCache

    @classmethod
    def open(
        cls,
        name: str,
        cases: Sequence[Case],
        cache: ExampleCache,
        training: CaseSettings,
        progress: Progress = silent,
    ) -> tuple[Site, dict[str, str]]:
        """A site of which every study is prepared, and the reason for each that cannot be.

        Args:
            name: of the site.
            cases: all of them; those of the settings' fold are kept for validation.
            cache: where they are prepared.
            training: settings.
            progress: told as stage ``prepare``.

        Raises:
            InputRefused: ``no-training-cases``, nothing to learn from.
        """
        refused = cache.fill(cases, max(1, training.workers), progress)
        usable = [case for case in cases if case.id not in refused]
        kept_out = [case for case in usable if training.fold is not None and case.fold == training.fold]
        learnt = tuple(case for case in usable if case not in kept_out and trains(case, cache, training))
        site = cls(name, learnt, tuple(kept_out), cache)
        counts = site.counts(training.tasks)
        if not any(counts[task] for task in training.tasks):
            text = f"Of {counts[STUDIES]} training studies of the site {name}, none has labels for {training.tasks}."
            raise InputRefused("no-training-cases", text, "Give a list with labels for one of the tasks at least.")
        return site, refused

    def counts(self, tasks: Sequence[str]) -> dict[str, int]:
        """Training studies, in all and with labels for each task."""
        known = {
            "segmentation": [case.label is not None for case in self.training],
            "detection": [case.boxes is not None for case in self.training],
            "grading": [case.grade is not None for case in self.training],
        }
        return {STUDIES: len(self.training), **{task: sum(known[task]) for task in tasks}}

    def update(self, before: GlobalState, plan: Plan, progress: Progress = silent) -> SiteUpdate:
        """Train from a model for one round.

        The optimiser starts anew in every round, and the patches are those of the round's number, so that a site that
        was lost and comes back sends what it would have sent.

        Args:
            before: the model that the server sent.
            plan: of the federation.
            progress: told as stage ``train``, step by step, and may cancel there.
        """
        federation, settings = plan.federation, plan.training
        trainer = make_trainer(before, plan)
        counts = self.counts(settings.tasks)
        if federation.prior and before.precision:
            pull_towards(trainer, before.tensors, before.precision, federation.prior / counts[STUDIES])
        patches = CasePatches(self.training, self.cache, settings)
        first = before.round * federation.local_steps
        stream = iter(loader_from(patches, first, Team()))
        totals: dict[str, list[float]] = {task: [] for task in settings.tasks}
        trainer.network.train()
        for step in range(federation.local_steps):
            losses = trainer.step(list(islice(stream, settings.batch)), (first + step) / settings.steps)
            for task, value in losses.items():
                totals[task].append(value)
            progress("train", (step + 1) / federation.local_steps, f"Step {step + 1} of {federation.local_steps}")
        figures = {f"loss_{task}": sum(each) / len(each) for task, each in totals.items() if each}
        state = {name: tensor.detach().cpu().clone() for name, tensor in trainer.network.state_dict().items()}
        sent = {
            name: tensor
            for name, tensor in state.items()
            if tensor.is_floating_point() and counts[owner(name, settings.tasks) or STUDIES]
        }
        sent = blur(sent, {name: before.tensors[name] for name in sent}, federation.clip, federation.noise)
        if federation.rule != "bayes":
            return SiteUpdate(self.name, counts, sent, {}, {} if federation.noise else figures)
        numbers = (
            settings.steps * settings.batch + before.round * federation.fisher_patches + i
            for i in range(federation.fisher_patches)
        )
        own = precision(trainer, (patches[number] for number in numbers), counts)
        own = {name: own[name] for name in sent if not is_statistic(name)}
        weighted = {name: tensor * own[name] if name in own else tensor for name, tensor in sent.items()}
        return SiteUpdate(self.name, counts, weighted, own, figures)

    def rows(self, state: GlobalState, plan: Plan, cases: Sequence[Case] | None = None) -> list[Row]:
        """What a model gets right on each of some studies, by default those kept for validation."""
        trainer = make_trainer(state, plan)
        chosen = self.validation if cases is None else cases
        return measure(trainer.network, chosen, self.cache, plan.inference, trainer.device)

    def measure(self, state: GlobalState, plan: Plan) -> Mapping[str, float]:
        """Means over the validation studies, with their numbers."""
        return summarise(self.rows(state, plan))


def make_trainer(state: GlobalState, plan: Plan) -> Trainer:
    """A trainer of the plan with the weights of a model."""
    trainer = Trainer(plan.training, plan.anchor_shapes)
    trainer.network.load_state_dict({name: tensor.to(trainer.device) for name, tensor in state.tensors.items()})
    with torch.no_grad():
        trainer.averaged_network.load_state_dict(trainer.network.state_dict())
    return trainer
