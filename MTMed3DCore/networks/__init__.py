"""The networks: named parts, and one class that puts them together."""

from MTMed3DCore.networks.multitask import (
    FEATURE_SIZES,
    PRESETS,
    TASKS,
    MultiTaskNetwork,
    MultiTaskOutput,
    build_network,
)

__all__ = ["FEATURE_SIZES", "PRESETS", "TASKS", "MultiTaskNetwork", "MultiTaskOutput", "build_network"]
