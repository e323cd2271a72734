"""How a network is trained; each run keeps its settings beside its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.inference.settings import GRANULE
from MTMed3DCore.networks.registry import DEFAULT_FAMILY, TASKS, find_family
from MTMed3DCore.training.balancing import BALANCERS

PRECISIONS = ("fp32", "bf16")
AUGMENTATION = {
    "flip": 0.5,
    "affine": 0.3,
    "intensity": 0.5,
    "gamma": 0.3,
    "noise": 0.2,
    "bias_field": 0.2,
    "low_resolution": 0.15,
}
"""Kinds of augmentation and how often each is done unless a run's settings say otherwise; see `augmentation.py`."""


@dataclass(frozen=True)
class TrainSettings:
    """What every kind of training shares.

    Args:
        tasks: some of the family's, each once; one alone is a single-task variant.
        network_family: one of `MTMed3DCore.networks.FAMILY_NAMES`.
        network_options: further arguments of the family's builder.
        feature_size: of the network.
        spacing_mm: working spacing.
        patch: side of most training patches in voxels, a multiple of 32 and at least two strides of the family.
        wide_patch: side of the others, that of the windows in use, at least 64: norms over a window depend on how much
            it holds.
        wide_share: share of the wide ones; where there are any, a case of which the grade alone is known has no others.
        batch: patches whose gradients are averaged for a step, over all processes.
        learning_rate: highest rate of AdamW, after `warm_up` steps; a cosine takes it to zero.
        weight_decay: of AdamW.
        warm_up: steps.
        clip: largest norm of a gradient.
        balancing: one of `BALANCERS`.
        fixed_weights: weight by task for ``fixed``.
        balance_every: steps between two updates of the task weights.
        precision: ``"fp32"`` or ``"bf16"``.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        device: torch's name of it.
        seed: of everything random; 0 or more.
    """

    tasks: tuple[str, ...] = TASKS
    feature_size: int = 24
    spacing_mm: float = 1.0
    patch: int = 96
    wide_patch: int = 96
    wide_share: float = 0.0
    batch: int = 1
    learning_rate: float = 4e-4
    weight_decay: float = 1e-4
    warm_up: int = 40
    clip: float = 5.0
    balancing: str = "gradnorm"
    fixed_weights: dict[str, float] = field(default_factory=dict)
    balance_every: int = 16
    precision: str = "fp32"
    gradient_checkpointing: bool = False
    device: str = "cpu"
    seed: int = 1000
    network_family: str = DEFAULT_FAMILY
    network_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        family = find_family(self.network_family)
        checks = {
            "tasks": bool(self.tasks) and len({*self.tasks} & {*family.tasks}) == len(self.tasks),
            "spacing_mm": self.spacing_mm > 0,
            "patch": self.patch >= 2 * family.stride and self.patch % GRANULE == 0,
            "wide_patch": self.wide_patch >= max(self.patch, 2 * GRANULE) and self.wide_patch % GRANULE == 0,
            "wide_share": 0 <= self.wide_share <= 1,
            "batch": self.batch >= 1,
            "learning_rate": self.learning_rate > 0,
            "warm_up": self.warm_up >= 0,
            "clip": self.clip > 0,
            "balancing": self.balancing in BALANCERS,
            "balance_every": self.balance_every >= 1,
            "precision": self.precision in PRECISIONS,
            "seed": 0 <= self.seed < 2**63,
        }
        remedies = {"tasks": f"Name some of {', '.join(family.tasks)}, each once.", "seed": "Give 0 or more."}
        for name, holds in checks.items():
            if not holds:
                text = f"The training setting {name} cannot be {getattr(self, name)!r}."
                remedy = remedies.get(name, "See docs/training.md for what it may be.")
                raise WrongUse("training-setting", text, remedy)

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks with a loss: all of them, unless a kind of run holds some."""
        return self.tasks

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "tasks": list(self.tasks)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Self:
        """From `to_dict`'s form.

        Raises:
            WrongUse: a setting that this version does not know.
        """
        unknown = sorted(set(plain) - {each.name for each in fields(cls)})
        if unknown:
            text = f"There is no training setting {', '.join(unknown)}."
            raise WrongUse("training-setting", text, "See docs/training.md for what there is.")
        return cls(**plain)


@dataclass(frozen=True)
class StarterSettings(TrainSettings):
    """How the starter is trained: on synthetic studies, for a given time or number of steps.

    Args:
        minutes: wall-clock time; the learning rate falls to zero over it.
        steps: number of optimiser steps instead of a time, where runs are to be compared; 0 for the time.
        study_shape: voxels of a synthetic study.
        family: of synthetic studies.
        only: tasks whose own decoders alone are trained, with ``fixed`` balancing; the encoder and all other decoders
            stay as they are. Everything is trained where empty.
    """

    feature_size: int = 12
    spacing_mm: float = 2.0
    patch: int = 64
    wide_share: float = 0.15
    learning_rate: float = 1.5e-3
    minutes: float = 30.0
    steps: int = 0
    study_shape: tuple[int, int, int] = (80, 96, 80)
    family: str = "varied"
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        x, y, z = self.study_shape
        object.__setattr__(self, "study_shape", (x, y, z))
        object.__setattr__(self, "only", tuple(self.only))
        if self.only and not (set(self.only) <= set(self.tasks) and self.balancing == "fixed"):
            text = f"The training setting only cannot be {self.only!r} with {self.tasks!r} and {self.balancing}."
            raise WrongUse("training-setting", text, "Name tasks of the network, and weigh them by fixed weights.")

    @property
    def trained(self) -> tuple[str, ...]:
        """The tasks with a loss."""
        return self.only or self.tasks


@dataclass(frozen=True)
class ListSettings(TrainSettings):
    """What training on a list of studies or of images shares.

    Args:
        steps: optimiser steps of the whole run.
        fold: left out of training and used for validation; None trains on every case.
        validate_every: steps between two validations; 0 for none before the end.
        save_every: steps between two checkpoints.
        workers: processes that read and cut, as far as there are cores; 0 does it in the training process.
    """

    steps: int = 20_000
    fold: int | None = 0
    validate_every: int = 1000
    save_every: int = 200
    workers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("steps", 1), ("save_every", 1), ("validate_every", 0), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                text = f"The training setting {name} cannot be {value!r}."
                raise WrongUse("training-setting", text, f"Give {least} or more.")


@dataclass(frozen=True)
class CaseSettings(ListSettings):
    """How a network is trained on a data list.

    Args:
        augmentation: probability of each kind of `AUGMENTATION`; one that is not named is not done.
        encoder_weights: file of self-supervised Swin UNETR weights to start the encoder from; none where empty.
    """

    augmentation: dict[str, float] = field(default_factory=lambda: dict(AUGMENTATION))
    encoder_weights: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.augmentation) - set(AUGMENTATION))
        if unknown or not all(0 <= chance <= 1 for chance in self.augmentation.values()):
            text = f"The training setting augmentation cannot be {self.augmentation!r}."
            raise WrongUse("training-setting", text, f"Give probabilities of {', '.join(AUGMENTATION)}.")
