"""How well a model does on the whole studies of several sites, out of the cache in which training keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from MTMed3DCore.datalist import Case
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.training.examples import ExampleCache
from MTMed3DCore.training.validation import FIGURES, Row, means_of, measure_study


def measure(
    network: TaskNetwork, cases: Sequence[Case], cache: ExampleCache, inference: InferenceSettings, device: torch.device
) -> list[Row]:
    """The figures of each case; see `measure_study`."""
    network.eval()
    return [measure_study(network, cache.load(case), inference, device) for case in cases]


def summarise(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows that have it, and their number as ``n_`` and its name."""
    result: dict[str, float] = {}
    for name, (mean, number) in means_of(rows).items():
        result |= {name: mean, f"n_{name}": float(number)}
    return result


def pool(summaries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The summary of all rows together, out of the summaries of parts of them."""
    listed = list(summaries)
    result: dict[str, float] = {}
    for name in FIGURES:
        parts = [(each[name], each[f"n_{name}"]) for each in listed if each.get(f"n_{name}")]
        if parts:
            number = sum(count for _, count in parts)
            result[name] = sum(value * count for value, count in parts) / number
            result[f"n_{name}"] = number
    return result
