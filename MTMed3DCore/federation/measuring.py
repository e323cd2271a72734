"""How well a model does on whole studies, out of the cache in which training keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from MTMed3DCore.datalist import Case
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.training.examples import Example, ExampleCache
from MTMed3DCore.training.patches import region_channels

REGIONS = ("tumour_core", "whole_tumour", "enhancing")
FIGURES = {
    "whole_tumour": "segmentation",
    "tumour_core": "segmentation",
    "enhancing": "segmentation",
    "grade_right": "grading",
}
"""What is measured, and the task of each."""

Row = dict[str, float]


def measure(
    network: Any, cases: Sequence[Case], cache: ExampleCache, inference: InferenceSettings, device: torch.device
) -> list[Row]:
    """For each case Dice of the regions and whether the grade is right, as far as its truth is known."""
    network.eval()
    rows = []
    for case in cases:
        example = cache.load(case)
        raw = run_network(network, _prepared(example, inference.spacing_mm), inference, device)
        row: Row = {}
        if example.labels is not None and "segmentation" in network.tasks:
            truth = region_channels(example.labels).numpy() > 0
            found = raw.regions >= inference.region_threshold
            row |= {name: float(dice(f, t)) for name, f, t in zip(REGIONS, found, truth, strict=True)}
        if example.grade is not None and "grading" in network.tasks:
            # Where no tumour was found there is no grade, and none is not right.
            probability = raw.hgg_probability
            row["grade_right"] = float(probability is not None and (probability >= 0.5) == bool(example.grade))
        rows.append(row)
    return rows


def summarise(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows that have it, and their number as ``n_`` and its name."""
    listed = list(rows)
    result: dict[str, float] = {}
    for name in FIGURES:
        values = [row[name] for row in listed if name in row]
        if values:
            result[name] = float(np.mean(values))
            result[f"n_{name}"] = float(len(values))
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


def _prepared(example: Example, spacing_mm: float) -> PreparedStudy:
    image = example.image.numpy()
    shape = (image.shape[1], image.shape[2], image.shape[3])
    grid = Grid(shape, np.diag([spacing_mm] * 3 + [1.0]))
    return PreparedStudy(image, (image != 0).any(axis=0), grid, grid, True)
