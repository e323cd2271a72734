"""Everything that a site must know to take part, beside the weights: it comes from the server with every model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.federation.settings import FederationSettings
from MTMed3DCore.federation.updates import GlobalState
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.training.settings import CaseSettings
from MTMed3DCore.training.trainer import Trainer

OWN = ("device", "workers", "encoder_weights")
"""Training settings that a site has for itself; the server neither knows nor sets them."""


@dataclass(frozen=True)
class Plan:
    """What the whole federation agrees on.

    Args:
        federation: how updates are made and joined.
        training: of the network; its steps follow from the federation's rounds.
        anchor_shapes: in voxels. No site tells the sizes of its boxes, so by default the published ones.
    """

    federation: FederationSettings
    training: CaseSettings
    anchor_shapes: list[list[float]]

    @classmethod
    def make(
        cls, federation: FederationSettings, training: CaseSettings, anchor_shapes: list[list[float]] | None = None
    ) -> Plan:
        """A plan with the steps that the rounds need, and the published anchors unless others are given."""
        if anchor_shapes is None:
            published = np.array(InferenceSettings().anchor_shapes, dtype=float) / training.spacing_mm
            anchor_shapes = published.tolist()
        steps = federation.rounds * federation.local_steps
        return cls(federation, replace(training, steps=steps, fold=training.fold), anchor_shapes)

    @property
    def inference(self) -> InferenceSettings:
        """How the trained network is applied."""
        return InferenceSettings(
            spacing_mm=self.training.spacing_mm,
            window=self.training.wide_patch,
            anchor_shapes=self.anchor_shapes,
            grading_crop=self.training.patch,
        )

    def first_state(self) -> GlobalState:
        """Fresh weights, the same for a seed on every machine with this version of torch."""
        trainer = Trainer(replace(self.training, device="cpu"), self.anchor_shapes)
        return GlobalState(0, {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()})

    def to_json(self) -> str:
        """For the wire and for the checkpoint."""
        training = {name: value for name, value in self.training.to_dict().items() if name not in OWN}
        return json.dumps(
            {"federation": self.federation.to_dict(), "training": training, "anchor_shapes": self.anchor_shapes}
        )

    @classmethod
    def from_json(cls, text: str, *, device: str = "cpu", workers: int = 0) -> Plan:
        """The plan as a site or a resumed server has it.

        Args:
            text: from `to_json`.
            device, workers: the site's own.

        Raises:
            WrongUse: ``federation-setting``, ``training-setting``, ``federation-plan``.
        """
        try:
            plain = json.loads(text)
            given = {name: value for name, value in plain["training"].items() if name not in OWN}
            training = CaseSettings.from_dict({**given, "device": device, "workers": workers})
            return cls(FederationSettings.from_dict(plain["federation"]), training, plain["anchor_shapes"])
        except (ValueError, KeyError, TypeError) as error:
            remedy = "Use the same version of this program at the server and at every site."
            raise WrongUse("federation-plan", f"The server's plan cannot be read: {error}.", remedy) from error
