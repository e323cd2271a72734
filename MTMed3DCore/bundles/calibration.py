"""What a bundle's metadata say of how its scores are to be taken: numbers, checked when they are read.

==============================  ===================================================================================
``grade_calibration``           `method`, `studies`, `data`; `temperature`, `calibration_error` where known
``lesion_calibration``          `method`, `studies`, `data`, `detection` and `region`, each a `slope` and an
                                `intercept` of the logit; `calibration_error` where known
``entropy_limit``               bits a voxel of segmented tumour, above which the network counts as unsure
==============================  ===================================================================================

All under `mtmed3d` of ``configs/metadata.json``; whatever is malformed counts as absent, for a probability that nobody
calibrated is better shown as what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from typing import Any, TypeGuard

KEYS = {"method": str, "studies": int, "data": str}
"""What every calibration must say."""
_EPSILON = 1e-6
"""How far from 0 and 1 a score is kept before its logit is taken."""


@dataclass(frozen=True)
class LogitLine:
    """A straight line between logits, which never falls.

    Args:
        slope: not negative; 1 changes nothing.
        intercept: added.
    """

    slope: float
    intercept: float = 0.0

    def __call__(self, score: float) -> float:
        """The probability of a score, both 0 to 1."""
        kept = min(max(score, _EPSILON), 1 - _EPSILON)
        value = self.slope * log(kept / (1 - kept)) + self.intercept
        return 1 / (1 + exp(-value)) if value >= 0 else exp(value) / (1 + exp(value))


@dataclass(frozen=True)
class LesionCalibration:
    """The probability that a lesion with a score is a true one (Platt scaling, 1999).

    Args:
        lines: by origin, ``"detection"`` and ``"region"``: their scores have little to do with each other.
        said: `KEYS` and, where it was measured, ``calibration_error``.
    """

    lines: Mapping[str, LogitLine]
    said: Mapping[str, Any]


def grade_calibration(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the bundle's makers calibrated the probability of high grade.

    Args:
        metadata: of a bundle, ``configs/metadata.json``.

    Returns:
        ``method``, ``studies`` (how many), ``data`` (which) and, where they are known, ``temperature`` and
        ``calibration_error``; None where the metadata records no calibration, or not all of this.
    """
    entry = _entry(metadata, "grade_calibration")
    said = _said(entry)
    temperature = entry.get("temperature")
    if said is not None and _is_number(temperature) and temperature > 0:
        said["temperature"] = float(temperature)
    return said


def grade_line(calibration: Mapping[str, Any] | None) -> LogitLine:
    """How the raw probability of high grade becomes the calibrated one; unchanged without a temperature."""
    temperature = (calibration or {}).get("temperature")
    return LogitLine(1.0 if temperature is None else 1 / temperature)


def lesion_calibration(metadata: Mapping[str, Any]) -> LesionCalibration | None:
    """How the bundle's makers calibrated the lesions' scores, or None where they did not."""
    entry = _entry(metadata, "lesion_calibration")
    said = _said(entry)
    lines = {}
    for origin in ("detection", "region"):
        line = entry.get(origin)
        if not isinstance(line, Mapping) or not all(_is_number(line.get(key)) for key in ("slope", "intercept")):
            return None
        if line["slope"] < 0:
            return None
        lines[origin] = LogitLine(float(line["slope"]), float(line["intercept"]))
    return None if said is None else LesionCalibration(lines, said)


def entropy_limit(metadata: Mapping[str, Any]) -> float | None:
    """Bits a voxel from which the network counts as unsure, or None where nobody measured it."""
    section = metadata.get("mtmed3d", {})
    limit = section.get("entropy_limit") if isinstance(section, Mapping) else None
    return float(limit) if _is_number(limit) and 0 < limit <= 1 else None


def _entry(metadata: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = metadata.get("mtmed3d", {})
    entry = section.get(key) if isinstance(section, Mapping) else None
    return entry if isinstance(entry, Mapping) else {}


def _said(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    if not all(isinstance(entry.get(key), kind) for key, kind in KEYS.items()):
        return None
    result = {key: entry[key] for key in KEYS}
    error = entry.get("calibration_error")
    if _is_number(error) and 0 <= error <= 1:
        result["calibration_error"] = float(error)
    return result if result["studies"] > 0 and result["method"] and result["data"] else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
