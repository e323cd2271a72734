"""How well a network does on whole studies, on the working grid: while it trains, and at the sites of a federation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from MTMed3DCore.datalist import Case
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.examples import Example, prepare_case
from MTMed3DCore.training.patches import region_channels
from MTMed3DCore.training.trainer import Trainer

REGIONS = ("tumour_core", "whole_tumour", "enhancing")
FIGURES = {
    "whole_tumour": "segmentation",
    "tumour_core": "segmentation",
    "enhancing": "segmentation",
    "grade_right": "grading",
}
"""What is measured, and the task of each."""

Row = dict[str, float]


def measure_study(
    network: TaskNetwork, example: Example, prepared: PreparedStudy, inference: InferenceSettings, device: torch.device
) -> Row:
    """Dice of the regions, and 1.0 or 0.0 for the grade, of one study as far as its truth is known.

    A study in which no tumour was found has no grade, and that is not right.
    """
    with torch.inference_mode():
        raw = run_network(network, prepared, inference, device)
    row: Row = {}
    if example.labels is not None and "segmentation" in network.tasks:
        truth = region_channels(example.labels).numpy() > 0
        found = inference.regions_of(raw.regions)
        row |= {name: float(dice(f, t)) for name, f, t in zip(REGIONS, found, truth, strict=True)}
    if example.grade is not None and "grading" in network.tasks:
        probability = raw.hgg_probability
        row["grade_right"] = float(probability is not None and (probability >= 0.5) == bool(example.grade))
    return row


def means_of(rows: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, int]]:
    """Mean of each of `FIGURES` over the rows that have it, and their number."""
    listed = list(rows)
    known = {name: [row[name] for row in listed if name in row] for name in FIGURES}
    return {name: (float(np.mean(values)), len(values)) for name, values in known.items() if values}


def validate(trainer: Trainer, cases: Sequence[Case], inference: InferenceSettings, team: Team) -> dict[str, float]:
    """Mean Dice and share of right grades of the averaged network; every process measures its share of the studies."""
    network = trainer.averaged_network.eval()
    mine: list[Row] = []
    for case in team.share(cases):
        example, prepared = prepare_case(case, inference.spacing_mm, inference.normalisation)
        mine.append(measure_study(network, example, prepared, inference, trainer.device))
    rows = [row for part in team.gather(mine) for row in part]
    return {name: round(mean, 4) for name, (mean, _) in means_of(rows).items()}
