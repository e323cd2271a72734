"""The ways of weighing by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.training.balancing.balancer import Balancer
from MTMed3DCore.training.balancing.fixed import FixedWeights
from MTMed3DCore.training.balancing.gradnorm import GradNorm
from MTMed3DCore.training.balancing.mgda import MGDA
from MTMed3DCore.training.balancing.uncertainty import UncertaintyWeights

_MOVING: dict[str, type[Any]] = {"gradnorm": GradNorm, "mgda": MGDA, "uncertainty": UncertaintyWeights}
BALANCERS = (*_MOVING, "fixed")


def make_balancer(name: str, tasks: Sequence[str], fixed: Mapping[str, float] | None = None) -> Balancer:
    """The way of weighing of a name.

    Args:
        name: one of `BALANCERS`.
        tasks: of the network.
        fixed: weight by task for ``fixed``; 1 for a task that it does not name.

    Raises:
        WrongUse: ``balancing-unknown``.
    """
    if name not in BALANCERS:
        text = f"There is no way of balancing {name!r}."
        raise WrongUse("balancing-unknown", text, f"Use one of {', '.join(BALANCERS)}.")
    if name == "fixed" or len(tasks) == 1:
        return FixedWeights(tasks, fixed or {})
    made: Balancer = _MOVING[name](tasks)
    return made
