"""What is kept of one evaluated case: enough to summarise cohorts anew without looking at an image again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MODEL, COMPONENTS, THRESHOLDS = "model", "components", "thresholds"
"""The model as it answers; boxes round the connected components of its segmentation; intensity thresholds."""
SCALED, ALWAYS_HGG = "model_scaled", "always_hgg"
"""The model's grades with a temperature; the grade of the majority for every case."""
METHOD_NAMES = {
    MODEL: "model",
    SCALED: "model, temperature-scaled",
    COMPONENTS: "baseline: boxes of its segmentation",
    THRESHOLDS: "baseline: intensity thresholds",
    ALWAYS_HGG: "baseline: always HGG",
}
UNDETECTED = "boxes-from-regions"
"""The warning of an analysis whose model has no box detector."""
REGION_FIGURES = ("dice", "hd95_mm", "lesion_dice", "lesion_hd95_mm")
"""Of `RegionScore`: what is averaged over cases."""


@dataclass(frozen=True)
class RegionScore:
    """One region of one case against the truth.

    Args:
        dice, hd95_mm: of the whole region.
        lesion_dice, lesion_hd95_mm, lesions, missed, false: see `lesionwise.LesionWise`.
        truth_ml, found_ml: volumes.
    """

    dice: float
    hd95_mm: float
    lesion_dice: float
    lesion_hd95_mm: float
    lesions: int
    missed: int
    false: int
    truth_ml: float
    found_ml: float


@dataclass(frozen=True)
class MethodResult:
    """What one method gave for one case.

    Args:
        regions: by name; None where the method does not segment or the case has no label map.
        boxes: in voxels of the T1ce grid; None where the method gives no boxes.
        scores: of the boxes.
    """

    regions: Mapping[str, RegionScore] | None = None
    boxes: Sequence[Sequence[float]] | None = None
    scores: Sequence[float] = ()


@dataclass(frozen=True)
class CaseResult:
    """One case, measured.

    Args:
        id, patient, fold: as in the data list.
        key: changes with everything that the result depends on.
        grade: ``"HGG"``, ``"LGG"`` or None where nobody knows it.
        truth_boxes: in voxels of the T1ce grid; None where nobody knows them.
        graded: whether the model grades at all.
        probability_hgg: the model's; None where it gave none.
        scaled_probability_hgg: the same with a temperature, where there is one.
        methods: by name.
        model: identity of the model that made the findings.
        analysis: folder of the analysis, for pictures.
        seconds: of analysing and of measuring.
        warnings: of the analysis, their codes.
    """

    id: str
    patient: str
    fold: int | None
    key: str
    grade: str | None = None
    truth_boxes: Sequence[Sequence[float]] | None = None
    graded: bool = False
    probability_hgg: float | None = None
    scaled_probability_hgg: float | None = None
    methods: Mapping[str, MethodResult] = field(default_factory=dict)
    model: Mapping[str, str] | None = None
    analysis: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice of the model over the regions, or None."""
        regions = self.methods[MODEL].regions if MODEL in self.methods else None
        return None if regions is None else sum(each.dice for each in regions.values()) / len(regions)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, numbers rounded to a millionth."""
        plain: dict[str, Any] = _rounded(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> CaseResult:
        """From `to_dict`'s form.

        Raises:
            TypeError, KeyError, AttributeError: another form.
        """
        known = {each.name for each in fields(cls)}
        methods = {name: _method(entry) for name, entry in plain["methods"].items()}
        return cls(**{**{name: value for name, value in plain.items() if name in known}, "methods": methods})


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured, and why."""

    id: str
    code: str
    text: str
    remedy: str = ""


def _method(entry: Mapping[str, Any]) -> MethodResult:
    regions = entry["regions"]
    scores = None if regions is None else {name: RegionScore(**score) for name, score in regions.items()}
    return MethodResult(scores, entry["boxes"], entry["scores"])


def _rounded(value: Any) -> Any:
    match value:
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case float():
            return round(value, 6)
    return value
