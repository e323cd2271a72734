"""How a network is applied to images, and how it is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from MTMed3DCore.errors import ModelRefused, WrongUse
from MTMed3DCore.images2d.imagelist import ACTIVATIONS, Truths

KIND = "images2d"
"""Marks the settings of a bundle for images; those for brain studies have no mark."""
GRANULE = 32
AUGMENTATION = {"flip": 0.5, "rotate": 0.5}
"""Kinds of augmentation and how often each is done: mirrored left to right; turned by up to `ROTATION` degrees."""
ROTATION = 25.0


@dataclass(frozen=True)
class ImageSettings:
    """How a model wants its images, and how its output is read; stored in a bundle.

    Args:
        side: of the square to which an image is resized, in pixels, a multiple of 32.
        channels: 3 for colour, 1 for grey.
        truths: regions and labels, and how they exclude each other.
        region_threshold: probability from which a pixel belongs to a region with ``"sigmoid"``.
        anchor_shapes: base anchors in pixels of the square; none without detection.
        anchor_scales: factor on the base anchors for each detection level.
        score_threshold: detection score below which a box is not looked at.
        nms_iou: overlap above which the weaker of two boxes is dropped.
        max_detections: boxes kept an image.

    Raises:
        ModelRefused: a value that no model can have.
    """

    side: int = 224
    channels: int = 3
    truths: Truths = field(default_factory=Truths)
    region_threshold: float = 0.5
    anchor_shapes: Sequence[Sequence[float]] = ()
    anchor_scales: Sequence[float] = (1, 2, 4, 8)
    score_threshold: float = 0.1
    nms_iou: float = 0.22
    max_detections: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_shapes", tuple(tuple(shape) for shape in self.anchor_shapes))
        object.__setattr__(self, "anchor_scales", tuple(self.anchor_scales))
        truths = self.truths
        checks = {
            "side": self.side >= 2 * GRANULE and self.side % GRANULE == 0,
            "channels": self.channels in (1, 3),
            "truths": truths.region_activation in ACTIVATIONS
            and truths.label_activation in ACTIVATIONS
            and len(truths.regions) == len(truths.values),
            "region_threshold": 0 < self.region_threshold < 1,
            "anchor_shapes": all(len(shape) == 2 and min(shape) > 0 for shape in self.anchor_shapes),
            "anchor_scales": bool(self.anchor_scales) and min(self.anchor_scales) > 0,
            "score_threshold": 0 <= self.score_threshold < 1,
            "nms_iou": 0 <= self.nms_iou <= 1,
            "max_detections": self.max_detections >= 1,
        }
        for name, holds in checks.items():
            if not holds:
                text = f"The model's setting {name} is {getattr(self, name)!r}."
                raise ModelRefused("settings-invalid", text, "Install the model again, or ask its maker.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with the mark `KIND`."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["truths"] = self.truths.to_dict()
        plain["anchor_shapes"] = [list(shape) for shape in self.anchor_shapes]
        plain["anchor_scales"] = list(self.anchor_scales)
        return {"kind": KIND, **plain}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ImageSettings:
        """From `to_dict`'s form; what is missing takes its default.

        Raises:
            ModelRefused: a setting that this version does not know, or a value that no model can have.
        """
        given = {name: value for name, value in plain.items() if name != "kind"}
        unknown = sorted(set(given) - {each.name for each in fields(cls)})
        if unknown:
            text = f"The model has settings that this version does not know: {', '.join(unknown)}."
            raise ModelRefused("settings-unknown", text, "Update MTMed3D.")
        try:
            return cls(**{**given, "truths": Truths.from_dict(given.get("truths", {}))})
        except (TypeError, AttributeError) as error:
            text = f"The model's settings are malformed: {error}."
            raise ModelRefused("settings-invalid", text, "Install the model again.") from error


def check_augmentation(chances: Mapping[str, float]) -> None:
    """Refuse kinds of augmentation that images do not have.

    Raises:
        WrongUse: ``training-setting``.
    """
    if set(chances) - set(AUGMENTATION) or not all(0 <= chance <= 1 for chance in chances.values()):
        text = f"The training setting augmentation cannot be {dict(chances)!r}."
        raise WrongUse("training-setting", text, f"Give probabilities of {', '.join(AUGMENTATION)}.")
