"""The networks: named parts, one class for each family that puts them together, and the registry of families.

Names load on first use (PEP 562): asking for the families' names loads neither torch nor MONAI.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MTMed3DCore.networks.interface import MultiTaskOutput, TaskNetwork
    from MTMed3DCore.networks.multitask import FEATURE_SIZES, PRESETS, MultiTaskNetwork
    from MTMed3DCore.networks.registry import FAMILIES, FAMILY_NAMES, TASKS, Family, build_network, find_family

__all__ = [
    "FAMILIES",
    "FAMILY_NAMES",
    "FEATURE_SIZES",
    "PRESETS",
    "TASKS",
    "Family",
    "MultiTaskNetwork",
    "MultiTaskOutput",
    "TaskNetwork",
    "build_network",
    "find_family",
]

_HOMES = {
    "FAMILIES": "registry",
    "FAMILY_NAMES": "registry",
    "FEATURE_SIZES": "multitask",
    "PRESETS": "multitask",
    "TASKS": "registry",
    "Family": "registry",
    "MultiTaskNetwork": "multitask",
    "MultiTaskOutput": "interface",
    "TaskNetwork": "interface",
    "build_network": "registry",
    "find_family": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
