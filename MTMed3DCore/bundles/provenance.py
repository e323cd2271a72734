"""Which patients a model was trained on, told without naming them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

KEY = "trained_patients"
_DIGITS = 32


def patient_digests(patients: Iterable[str], weights_sha256: str) -> list[str]:
    """What a bundle records of the patients in its training, sorted.

    Each is hashed together with the weights, so that two models' records cannot be compared with each other. Whoever
    holds a patient's id can still ask whether that patient took part: that is the purpose.

    Args:
        patients: ids as the data list has them.
        weights_sha256: of the bundle's weights file.
    """
    return sorted({_digest(patient, weights_sha256) for patient in patients})


def took_part(patient: str, metadata: dict[str, Any], weights_sha256: str) -> bool:
    """Whether a patient is among those that a bundle's metadata records; False where it records none."""
    own = metadata.get("mtmed3d")
    recorded = own.get(KEY) if isinstance(own, dict) else None
    return isinstance(recorded, list) and _digest(patient, weights_sha256) in recorded


def _digest(patient: str, weights_sha256: str) -> str:
    return hashlib.sha256(f"{weights_sha256}\0{patient}".encode()).hexdigest()[:_DIGITS]
