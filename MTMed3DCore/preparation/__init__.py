"""From a study on the scanner's grid to the image that the network sees, and results back to the scanner's grid.

Names load on first use (PEP 562): a model's settings read `kinds` without loading torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MTMed3DCore.preparation.kinds import NORMALISATIONS
    from MTMed3DCore.preparation.normalise import normalise_tensor
    from MTMed3DCore.preparation.prepared import PreparedStudy, prepare, to_native

__all__ = ["NORMALISATIONS", "PreparedStudy", "normalise_tensor", "prepare", "to_native"]

_HOMES = {
    "NORMALISATIONS": "kinds",
    "PreparedStudy": "prepared",
    "normalise_tensor": "normalise",
    "prepare": "prepared",
    "to_native": "prepared",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
