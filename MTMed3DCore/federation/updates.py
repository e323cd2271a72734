"""What a site sends and what the server sends: named tensors and counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from MTMed3DCore.networks.ownership import owner

Tensors = Mapping[str, torch.Tensor]
STUDIES = "studies"
"""Name of the count of all training studies, beside those by task."""


@dataclass(frozen=True)
class GlobalState:
    """The model between two rounds.

    Args:
        round: how many rounds made it; 0 before the first.
        tensors: the network's state dict.
        precision: of the floating parameters, from the sites' last updates; empty before the first Bayesian round.
    """

    round: int
    tensors: Tensors
    precision: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class SiteUpdate:
    """What a site learned in a round.

    Args:
        site: its name.
        counts: training studies as `STUDIES`, and by task those with labels for it.
        tensors: floating tensors of the network. Under the Bayesian rule each parameter comes multiplied by its
            precision; batch statistics never do. Those of a decoder whose task the site has no labels for are left out.
        precision: of the parameters, under the Bayesian rule; empty otherwise.
        figures: what the site measured, by name; nothing that belongs to a single study.
    """

    site: str
    counts: Mapping[str, int]
    tensors: Tensors
    precision: Tensors = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    def count(self, name: str, tasks: tuple[str, ...]) -> int:
        """Studies that a tensor was trained on; 0 where the site has no labels for its task."""
        return int(self.counts.get(owner(name, tasks) or STUDIES, 0))

    def mean(self, name: str) -> torch.Tensor:
        """The tensor itself in float64, freed of its precision."""
        value = self.tensors[name].double()
        return value / self.precision[name].double() if name in self.precision else value


def fault(update: SiteUpdate, before: GlobalState, tasks: tuple[str, ...], *, bayes: bool) -> str:
    """Why an update cannot be used, or nothing.

    Args:
        update: as it came.
        before: the model that the site was sent.
        tasks: of the network.
        bayes: whether a precision is expected.
    """
    counts = list(update.counts.values())
    if update.counts.get(STUDIES, 0) < 1 or any(count < 0 for count in counts):
        return f"it says {dict(update.counts)} studies"
    if any(update.counts.get(task, 0) > update.counts[STUDIES] for task in tasks):
        return f"it counts more studies with labels than studies: {dict(update.counts)}"
    wanted = {name for name, tensor in before.tensors.items() if tensor.is_floating_point()}
    needed = {name for name in wanted if update.count(name, tasks)}
    parameters = {name for name in needed if not is_statistic(name)} if bayes else set()
    for kind, given, expected in (("", update.tensors, needed), ("the precision of ", update.precision, parameters)):
        for name in sorted(expected - set(given)):
            return f"{kind}{name} is missing"
        for name in sorted(set(given) - expected):
            return f"{kind}{name} was not asked for"
        for name in sorted(expected):
            shape = before.tensors[name].shape
            if given[name].shape != shape:
                return f"{kind}{name} has shape {list(given[name].shape)}, not {list(shape)}"
            if not given[name].is_floating_point() or not torch.isfinite(given[name]).all():
                return f"{kind}{name} holds values that are not finite"
    for name in sorted(parameters):
        if not (update.precision[name] > 0).all():
            return f"the precision of {name} is not positive"
    for name in sorted(needed):
        if name.endswith("running_var") and (update.tensors[name] < 0).any():
            return f"{name} is negative"
    return ""


def is_statistic(name: str) -> bool:
    """Whether a floating tensor is a running batch statistic rather than a parameter."""
    return name.endswith(("running_mean", "running_var"))
