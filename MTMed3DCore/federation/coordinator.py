"""The server's side of a round: check every update, bring units into order, join, write the checkpoint.

A server that was killed goes on from ``federation.json``: the file changes in one move, after the weights it names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.federation.aggregation import aggregate
from MTMed3DCore.federation.files import BUNDLE, COURSE, PLAN
from MTMed3DCore.federation.matching import match
from MTMed3DCore.federation.plan import Plan
from MTMed3DCore.federation.privacy import epsilon
from MTMed3DCore.federation.symmetry import symmetries
from MTMed3DCore.federation.updates import GlobalState, SiteUpdate, fault
from MTMed3DCore.whole_file import write_whole

SCHEMA = "mtmed3d.federation/1"
KEPT = 2
"""Rounds of which the weights are kept."""


@dataclass(frozen=True)
class Absence:
    """A site without an update in a round, and why."""

    site: str
    reason: str


class Coordinator:
    """The model of a federation, round after round.

    Args:
        plan: of the federation.
        folder: of the checkpoints; None keeps nothing.
        state: to begin with; fresh weights where None.
    """

    def __init__(self, plan: Plan, folder: Path | None = None, state: GlobalState | None = None) -> None:
        self.plan, self.folder = plan, folder
        self.state = plan.first_state() if state is None else state
        self.rounds: list[dict[str, Any]] = []
        self._groups = symmetries(_network(plan)) if plan.federation.matching else []

    @classmethod
    def start(cls, plan: Plan, folder: Path, *, resume: bool = False) -> Coordinator:
        """A new federation in an empty folder, or the one that was begun there.

        Raises:
            WrongUse: ``federation-exists``, ``federation-missing``, ``federation-differs``.
            InputRefused: ``checkpoint-damaged``.
        """
        if not resume:
            if (folder / PLAN).exists():
                raise WrongUse(
                    "federation-exists", f"{folder} holds a federation.", "Give --resume, or another folder."
                )
            folder.mkdir(parents=True, exist_ok=True)
            made = cls(plan, folder)
            write_whole(folder / PLAN, plan.to_json() + "\n")
            made._save()
            return made
        if not (folder / COURSE).is_file():
            text = f"{folder} holds no federation to resume."
            raise WrongUse("federation-missing", text, "Leave --resume out to start one.")
        if json.loads((folder / PLAN).read_text(encoding="utf-8")) != json.loads(plan.to_json()):
            text = f"{folder / PLAN} says something else than the settings that were given."
            raise WrongUse("federation-differs", text, "Resume with what the federation began with.")
        return cls._load(plan, folder)

    @classmethod
    def _load(cls, plan: Plan, folder: Path) -> Coordinator:
        from safetensors.torch import load_file

        try:
            course = json.loads((folder / COURSE).read_text(encoding="utf-8"))
            stored = load_file(folder / _weights(course["round"]))
            tensors, precision = (
                {name.removeprefix(kind): tensor for name, tensor in stored.items() if name.startswith(kind)}
                for kind in ("tensors.", "precision.")
            )
            made = cls(plan, folder, GlobalState(int(course["round"]), tensors, precision))
            made.rounds = list(course["rounds"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            text = f"{folder / COURSE} cannot be resumed from: {error}."
            raise InputRefused("checkpoint-damaged", text, "Start the federation again in another folder.") from error
        except Exception as error:  # safetensors has an error of its own for a damaged file
            text = f"{folder} cannot be resumed from: {error}."
            raise InputRefused("checkpoint-damaged", text, "Start the federation again in another folder.") from error
        return made

    def take(self, replies: Sequence[SiteUpdate | Absence]) -> dict[str, Any]:
        """Join the updates of a round.

        An update that cannot be used is refused by name and the round goes on without it; with fewer than the plan's
        fewest sites the model stays as it was, and the round is counted all the same.

        Returns:
            The round's record: its number, the sites that took part with their counts and figures, those that did not
            with the reason, and how many units were moved.
        """
        federation, tasks = self.plan.federation, self.plan.training.tasks
        absent = [each for each in replies if isinstance(each, Absence)]
        used: list[SiteUpdate] = []
        for update in (each for each in replies if isinstance(each, SiteUpdate)):
            reason = fault(update, self.state, tasks, bayes=federation.rule == "bayes")
            if not reason and any(update.site == other.site for other in used):
                reason = "a site of this name has replied already"
            if reason:
                absent.append(Absence(update.site, f"refused: {reason}"))
            else:
                used.append(update)
        moved = 0
        enough = len(used) >= federation.fewest_sites
        if enough:
            matched, moved = match(used, self._groups) if self._groups else (used, 0)
            damping, memory = federation.damping, federation.memory
            self.state = aggregate(self.state, matched, tasks, damping=damping, memory=memory)
        else:
            self.state = GlobalState(self.state.round + 1, self.state.tensors, self.state.precision)
        record: dict[str, Any] = {
            "round": self.state.round,
            "joined": enough,
            "sites": {
                u.site: {"counts": dict(u.counts), "figures": _rounded(u.figures)}
                for u in sorted(used, key=lambda u: u.site)
            },
            "absent": {each.site: each.reason for each in absent},
            "units_moved": moved,
        }
        if federation.noise:
            record["epsilon"] = epsilon(federation.noise, self.state.round, federation.delta)
        self.rounds.append(record)
        self._save()
        return record

    def note(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Add what the new model was measured at, by site, to the last round's record."""
        record = self.rounds[-1]
        record["measured"] = {site: _rounded(values) for site, values in sorted(figures.items())}
        self._write_course()

    @property
    def finished(self) -> bool:
        """Whether every round is done."""
        return self.state.round >= self.plan.federation.rounds

    def _save(self) -> None:
        if self.folder is None:
            return
        from safetensors.torch import save_file

        stored = {f"tensors.{name}": tensor.contiguous() for name, tensor in self.state.tensors.items()}
        stored |= {f"precision.{name}": tensor.contiguous() for name, tensor in self.state.precision.items()}
        target = self.folder / _weights(self.state.round)
        partial = target.with_name(f".{target.name}.partial")
        save_file(stored, partial)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())  # the file that names it must not reach the disk first
        partial.replace(target)
        self._write_course()
        for old in sorted(self.folder.glob("round-*.safetensors"))[:-KEPT]:
            old.unlink()

    def _write_course(self) -> None:
        if self.folder is not None:
            document = {"schema": SCHEMA, "round": self.state.round, "rounds": self.rounds}
            write_whole(self.folder / COURSE, json.dumps(document, indent=1) + "\n")

    def write_bundle(self) -> Path:
        """Write the model as a bundle into the folder.

        Raises:
            WrongUse: a federation without a folder.
        """
        from MTMed3DCore.training.finished import write_bundle

        if self.folder is None:
            raise WrongUse("federation-folder", "This federation has no folder.", "Give it one.")
        network = _network(self.plan)
        network.load_state_dict(dict(self.state.tensors))
        sites = sorted({site for record in self.rounds for site in record["sites"]})
        federation = self.plan.federation
        write_bundle(
            self.folder,
            network,
            self.plan.training,
            self.plan.inference,
            learned=f"at {len(sites)} sites in {self.state.round} rounds of {federation.local_steps} steps each, "
            f"joined by `{federation.rule}`",
            more=". No study left its site.",
            trained_on=f"the studies of {len(sites)} sites, which stayed there",
        )
        return self.folder / BUNDLE


def _network(plan: Plan) -> Any:
    from dataclasses import replace

    from MTMed3DCore.training.trainer import Trainer

    with torch.random.fork_rng(devices=[]):
        return Trainer(replace(plan.training, device="cpu"), plan.anchor_shapes).network


def _weights(number: int) -> str:
    return f"round-{number:04d}.safetensors"


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in figures.items()}
