"""From a prepared study through the network to findings.

Names load on first use (PEP 562): reading a bundle's settings loads neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MTMed3DCore.inference.devices import choose_device, choose_precision
    from MTMed3DCore.inference.pipeline import analyze
    from MTMed3DCore.inference.settings import InferenceSettings
    from MTMed3DCore.inference.windows import RawResult, run_network

__all__ = ["InferenceSettings", "RawResult", "analyze", "choose_device", "choose_precision", "run_network"]

_HOMES = {
    "InferenceSettings": "settings",
    "RawResult": "windows",
    "analyze": "pipeline",
    "choose_device": "devices",
    "choose_precision": "devices",
    "run_network": "windows",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
