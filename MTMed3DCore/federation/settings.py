"""What the sites of a federation agree on; the server sends it, so that no site has to be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from MTMed3DCore.errors import WrongUse

RULES = ("fedavg", "bayes")


@dataclass(frozen=True)
class FederationSettings:
    """How updates are made, checked and joined.

    Args:
        rule: ``"fedavg"`` or ``"bayes"``.
        rounds: of the whole federation.
        local_steps: optimiser steps of a site in a round.
        damping: of the Bayesian rule, relative to the mean precision of each tensor over all sites; with infinity it
            is FedAvg.
        prior: strength of the pull towards the global model while a site trains; 0 for none, ``bayes`` alone.
        memory: share of the earlier rounds' precision that the next prior keeps, 0 to below 1.
        matching: put the units of every site into one order before they are joined.
        fisher_patches: training patches from which a site estimates its precision.
        timeout: seconds that a site has for a round.
        fewest_sites: updates without which a round changes nothing.
        measure_every: rounds between two measurements of the global model at the sites; the last round is always
            measured, unless this is 0.
        clip: largest L2 norm of what a site changes in a round; 0 for no limit.
        noise: standard deviation of the noise on it, as a multiple of `clip`; 0 for none.
        delta: of the privacy statement.
    """

    rule: str = "fedavg"
    rounds: int = 10
    local_steps: int = 100
    damping: float = 0.3
    prior: float = 0.0
    memory: float = 0.0
    matching: bool = False
    fisher_patches: int = 8
    timeout: float = 3600.0
    fewest_sites: int = 1
    measure_every: int = 1
    clip: float = 0.0
    noise: float = 0.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        checks = {
            "rule": self.rule in RULES,
            "rounds": self.rounds >= 1,
            "local_steps": self.local_steps >= 1,
            "damping": self.damping >= 0,
            "prior": self.prior >= 0,
            "memory": 0 <= self.memory < 1,
            "fisher_patches": self.fisher_patches >= 1,
            "timeout": self.timeout > 0,
            "fewest_sites": self.fewest_sites >= 1,
            "measure_every": self.measure_every >= 0,
            "clip": self.clip >= 0,
            "noise": self.noise >= 0,
            "delta": 0 < self.delta < 1,
        }
        for name, holds in checks.items():
            if not holds:
                text = f"The federation setting {name} cannot be {getattr(self, name)!r}."
                raise WrongUse("federation-setting", text, "See docs/federation.md for what it may be.")
        if self.noise and not self.clip:
            text = "Noise without a limit on the update protects nothing."
            raise WrongUse("federation-setting", text, "Give --clip with --noise.")
        if self.noise and self.rule == "bayes":
            text = "The Bayesian rule also sends a precision, which the noise would not cover."
            raise WrongUse("federation-setting", text, "Give --rule fedavg with --noise.")
        if self.prior and self.rule != "bayes":
            text = "A prior needs the precision that only the Bayesian rule has."
            raise WrongUse("federation-setting", text, "Give --rule bayes with --prior.")

    def measures(self, number: int) -> bool:
        """Whether the model of a round is measured; with noise never, since the figures would not be covered by it."""
        if self.noise or not self.measure_every:
            return False
        return number == self.rounds or number % self.measure_every == 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON types; infinite damping as a word, which JSON has no number for."""
        return {**asdict(self), "damping": self.damping if self.damping < float("inf") else "inf"}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """From `to_dict`'s form.

        Raises:
            WrongUse: ``federation-setting``, one that this version does not know or that cannot be.
        """
        unknown = sorted(set(plain) - {each.name for each in fields(cls)})
        if unknown:
            text = f"There is no federation setting {', '.join(unknown)}."
            raise WrongUse("federation-setting", text, "Use the same version of this program at every site.")
        return cls(**{**plain, "damping": float(plain.get("damping", cls.damping))})
