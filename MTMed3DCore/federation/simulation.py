"""A federation in one process: the same sites, the same coordinator, no network; and what to compare it with."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

from MTMed3DCore.datalist import Case
from MTMed3DCore.errors import Cancelled, WrongUse
from MTMed3DCore.federation.coordinator import Absence, Coordinator
from MTMed3DCore.federation.measuring import FIGURES, pool, summarise
from MTMed3DCore.federation.plan import Plan
from MTMed3DCore.federation.settings import FederationSettings
from MTMed3DCore.federation.site import Site
from MTMed3DCore.federation.updates import GlobalState, SiteUpdate
from MTMed3DCore.progress import Progress, silent

METHODS = ("fedavg", "bayes", "bayes+matching", "local", "centralised")
GLOBAL = "global"
log = getLogger("mtmed3d.federation")


@dataclass(frozen=True)
class Course:
    """How a method did.

    Args:
        method: of `METHODS`.
        rounds: one record a round; ``measured`` holds the figures by site, and under `GLOBAL` those over all studies
            that are measured. For ``local`` the latter is the mean over the models of the sites that have labels for a
            task, each on all those studies.
        state: the last model; None for ``local``, which has one for each site.
    """

    method: str
    rounds: list[dict[str, Any]]
    state: GlobalState | None


def simulate(
    method: str,
    plan: Plan,
    sites: Sequence[Site],
    *,
    test: Sequence[Case] = (),
    folder: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Course:
    """Run one method.

    Args:
        method: of `METHODS`. ``local`` trains every site for itself, ``centralised`` one model on the studies of all
            sites with as many steps a round as all sites do together.
        plan: of the federation; its rule and matching follow from the method.
        sites: with prepared studies.
        test: studies for the global figure; where there are none, every site's validation studies together.
        folder: for checkpoints, plan, course and bundle; None keeps nothing.
        resume: go on with what the folder holds.
        progress: told as stage ``train``, and may cancel there.
    """
    if method not in METHODS:
        raise WrongUse("federation-method", f"There is no method {method!r}.", f"Choose among {', '.join(METHODS)}.")
    if method == "local":
        return _local(plan, sites, test, progress)
    plan = plan_for(method, plan, len(sites))
    if method == "centralised":
        everything = tuple(case for site in sites for case in site.training)
        taking_part = [Site("all", everything, (), sites[0].cache)]
    else:
        taking_part = list(sites)
    coordinator = Coordinator(plan) if folder is None else Coordinator.start(plan, folder, resume=resume)
    while not coordinator.finished:
        number = coordinator.state.round
        coordinator.take([_reply(site, coordinator.state, plan) for site in taking_part])
        if plan.federation.measures(number + 1):
            coordinator.note(_measured(coordinator.state, plan, sites, test))
        progress("train", (number + 1) / plan.federation.rounds, f"{method}: round {number + 1}")
    if folder is not None:
        coordinator.write_bundle()
    return Course(method, coordinator.rounds, coordinator.state)


def plan_for(method: str, plan: Plan, sites: int) -> Plan:
    """The plan that a method stands for."""
    federation = plan.federation
    if method == "centralised":
        steps = federation.local_steps * sites
        changed: FederationSettings = replace(federation, rule="fedavg", prior=0.0, matching=False, local_steps=steps)
    elif method == "fedavg":
        changed = replace(federation, rule="fedavg", prior=0.0, matching=False)
    else:
        changed = replace(federation, rule="bayes", matching=method == "bayes+matching")
    return Plan.make(changed, plan.training, plan.anchor_shapes)


def _local(plan: Plan, sites: Sequence[Site], test: Sequence[Case], progress: Progress) -> Course:
    own = plan_for("fedavg", plan, 1)
    coordinators = {site.name: Coordinator(own) for site in sites}
    rounds: list[dict[str, Any]] = []
    for number in range(1, own.federation.rounds + 1):
        record: dict[str, Any] = {"round": number, "sites": {}, "absent": {}}
        for site in sites:
            done = coordinators[site.name].take([_reply(site, coordinators[site.name].state, own)])
            record["sites"] |= done["sites"]
            record["absent"] |= done["absent"]
        if own.federation.measures(number):
            measured = {s.name: dict(s.measure(coordinators[s.name].state, own)) for s in sites if s.validation}
            everywhere = [_on_all(coordinators[site.name].state, own, sites, test) for site in sites]
            known = [site.counts(own.training.tasks) for site in sites]
            record["measured"] = {**measured, GLOBAL: _mean_of_knowing(everywhere, known)}
            record["on_all"] = {site.name: figures for site, figures in zip(sites, everywhere, strict=True)}
        rounds.append(record)
        progress("train", number / own.federation.rounds, f"local: round {number}")
    return Course("local", rounds, None)


def _reply(site: Site, state: GlobalState, plan: Plan) -> SiteUpdate | Absence:
    """A site's update, or why there is none: a site that fails does not stop the others."""
    start = time.monotonic()
    try:
        update = site.update(state, plan)
    except Cancelled:
        raise
    except Exception as error:
        log.exception("The site %s could not do its part.", site.name)
        return Absence(site.name, f"lost: {type(error).__name__}")
    took = time.monotonic() - start
    if took > plan.federation.timeout:
        return Absence(site.name, f"late: {took:.0f} s of {plan.federation.timeout:g} s")
    return update


def _measured(
    state: GlobalState, plan: Plan, sites: Sequence[Site], test: Sequence[Case]
) -> dict[str, Mapping[str, float]]:
    figures: dict[str, Mapping[str, float]] = {s.name: s.measure(state, plan) for s in sites if s.validation}
    everywhere = summarise(sites[0].rows(state, plan, test)) if test else pool(figures.values())
    return {**figures, GLOBAL: everywhere}


def _on_all(state: GlobalState, plan: Plan, sites: Sequence[Site], test: Sequence[Case]) -> dict[str, float]:
    if test:
        return summarise(sites[0].rows(state, plan, test))
    return summarise(row for site in sites for row in site.rows(state, plan))


def _mean_of_knowing(figures: Sequence[Mapping[str, float]], counts: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """Mean of each figure over the sites that have labels for its task: the others never learned it."""
    result: dict[str, float] = {}
    for name, task in FIGURES.items():
        own = [f for f, count in zip(figures, counts, strict=True) if count.get(task, 0) and name in f]
        if own:
            result |= {key: sum(each[key] for each in own) / len(own) for key in (name, f"n_{name}")}
    return result
