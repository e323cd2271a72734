"""Everything about a model's use that is not in its weights; stored with the weights in a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.findings import WHOLE_TUMOUR
from MTMed3DCore.preparation.kinds import NORMALISATIONS
from MTMed3DCore.sequences import SEQUENCES

GRANULE = 32
"""Stride of the network's coarsest level: sides and starts of windows are multiples of it."""


@dataclass(frozen=True)
class InferenceSettings:
    """How a model wants its input, and how its output is read.

    Args:
        channel_order: sequences in the order of the network's input channels.
        channel_order_assumed: True when nobody stated the order (the authors' checkpoints carry none).
        spacing_mm: working spacing.
        window: side of the cubic window in voxels, a multiple of 32 and at least 64: the norms of the deepest level
            need more than the one voxel that 32 would leave it.
        normalisation: one of `MTMed3DCore.preparation.NORMALISATIONS`.
        region_thresholds: probability from which a voxel belongs to tumour core, whole tumour and enhancing tumour.
        anchor_shapes: base anchors in working voxels, each ``(x, y, z)``.
        anchor_scales: factor on the base anchors for each detection level.
        score_threshold: detection score below which a box is not looked at.
        nms_iou: overlap above which the weaker of two boxes is dropped.
        max_detections: boxes kept a study.
        minimum_lesion_ml: whole-tumour volume below which a region is taken for noise.
        minimum_core_share: share of core below which a component of the whole tumour is left out where no box is about
            it and another component has more core; 0 for never.
        minimum_lone_ml: whole-tumour volume below which a region that no box is about is left out; a larger one is
            reported whatever the detector says. Without effect for a network that does not detect.
        bare_box_score: detection score below which a box is not looked at in which nothing is segmented.
        grading_crop: side of the cube round the largest tumour that is graded, in working voxels; that of training.
        mirrored: segment the mirror image as well and take the mean of both, at about twice the time.

    Raises:
        ModelRefused: a value that no model can have.
    """

    channel_order: Sequence[str] = SEQUENCES
    channel_order_assumed: bool = False
    spacing_mm: float = 1.0
    window: int = 96
    normalisation: str = "zscore_brain"
    region_thresholds: Sequence[float] = (0.5, 0.5, 0.5)
    anchor_shapes: Sequence[Sequence[float]] = (
        (22, 29, 26),
        (20, 32, 29),
        (21, 29, 28),
        (15, 30, 20),
        (35, 35, 30),
    )
    anchor_scales: Sequence[float] = (1, 2, 4, 8)
    score_threshold: float = 0.1
    nms_iou: float = 0.22
    max_detections: int = 10
    minimum_lesion_ml: float = 0.1
    minimum_core_share: float = 0.0
    minimum_lone_ml: float = 0.0
    bare_box_score: float = 0.0
    grading_crop: int = 96
    mirrored: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_order", tuple(self.channel_order))
        object.__setattr__(self, "anchor_shapes", tuple(tuple(shape) for shape in self.anchor_shapes))
        object.__setattr__(self, "anchor_scales", tuple(self.anchor_scales))
        object.__setattr__(self, "region_thresholds", tuple(self.region_thresholds))
        checks = {
            "channel_order": sorted(self.channel_order) == sorted(SEQUENCES),
            "spacing_mm": self.spacing_mm > 0,
            "window": self.window >= 2 * GRANULE and self.window % GRANULE == 0,
            "normalisation": self.normalisation in NORMALISATIONS,
            "region_thresholds": len(self.region_thresholds) == 3 and all(0 < t < 1 for t in self.region_thresholds),
            "anchor_shapes": bool(self.anchor_shapes)
            and all(len(shape) == 3 and min(shape) > 0 for shape in self.anchor_shapes),
            "anchor_scales": bool(self.anchor_scales) and min(self.anchor_scales) > 0,
            "score_threshold": 0 <= self.score_threshold < 1,
            "nms_iou": 0 <= self.nms_iou <= 1,
            "max_detections": self.max_detections >= 1,
            "minimum_lesion_ml": self.minimum_lesion_ml >= 0,
            "minimum_core_share": 0 <= self.minimum_core_share <= 1,
            "minimum_lone_ml": self.minimum_lone_ml >= 0,
            "bare_box_score": 0 <= self.bare_box_score <= 1,
            "grading_crop": self.grading_crop >= GRANULE and self.grading_crop % GRANULE == 0,
        }
        for name, holds in checks.items():
            if not holds:
                raise ModelRefused(
                    "settings-invalid",
                    f"The model's setting {name} is {getattr(self, name)!r}.",
                    "Install the model again, or ask its maker.",
                )

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        plain = asdict(self)
        plain["channel_order"] = list(self.channel_order)
        plain["anchor_shapes"] = [list(shape) for shape in self.anchor_shapes]
        plain["anchor_scales"] = list(self.anchor_scales)
        plain["region_thresholds"] = list(self.region_thresholds)
        return plain

    @property
    def whole_tumour_threshold(self) -> float:
        """Probability from which a voxel belongs to the whole tumour."""
        return self.region_thresholds[WHOLE_TUMOUR]

    def regions_of(self, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """The voxels that belong to each region, of probabilities (3, ...) of TC, WT, ET."""
        levels = np.reshape(self.region_thresholds, (3,) + (1,) * (probabilities.ndim - 1))
        belongs: npt.NDArray[np.bool_] = probabilities >= levels
        return belongs

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> InferenceSettings:
        """From `to_dict`'s form; what is missing takes its default.

        Raises:
            ModelRefused: a setting that this version does not know, or a value that no model can have.
        """
        if isinstance(plain.get("region_threshold"), float):  # of bundles that have one for all regions
            level = plain["region_threshold"]
            rest = {name: value for name, value in plain.items() if name != "region_threshold"}
            plain = {"region_thresholds": [level] * 3, **rest}
        unknown = sorted(set(plain) - {each.name for each in fields(cls)})
        if unknown:
            raise ModelRefused(
                "settings-unknown",
                f"The model has settings that this version does not know: {', '.join(unknown)}.",
                "Update MTMed3D.",
            )
        try:
            return cls(**plain)
        except TypeError as error:
            raise ModelRefused(
                "settings-invalid", f"The model's settings are malformed: {error}.", "Install the model again."
            ) from error
