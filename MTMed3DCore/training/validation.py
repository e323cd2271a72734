"""How well a network does on whole studies, on the working grid: while it trains, and at the sites of a federation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from MTMed3DCore.datalist import Case
from MTMed3DCore.evaluation.detection import detection_figures, match_boxes
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.examples import Example, ExampleCache
from MTMed3DCore.training.patches import region_channels
from MTMed3DCore.training.trainer import Trainer

REGIONS = ("tumour_core", "whole_tumour", "enhancing")
FIGURES = {
    "whole_tumour": "segmentation",
    "tumour_core": "segmentation",
    "enhancing": "segmentation",
    "boxes_ap10": "detection",
    "grade_right": "grading",
}
"""What is measured, and the task of each."""

Row = dict[str, float]


def measure_study(network: TaskNetwork, example: Example, inference: InferenceSettings, device: torch.device) -> Row:
    """Dice of the regions, average precision of the boxes at IoU 0.1, and 1.0 or 0.0 for the grade, of one study.

    Each as far as its truth is known; a study without lesions cannot tell the precision. One in which no tumour was
    found has no grade, and that is not right.
    """
    with torch.inference_mode():
        raw = run_network(network, _prepared(example, inference.spacing_mm), inference, device)
    row: Row = {}
    if example.labels is not None and "segmentation" in network.tasks:
        truth = region_channels(example.labels).numpy() > 0
        found = inference.regions_of(raw.regions)
        row |= {name: float(dice(f, t)) for name, f, t in zip(REGIONS, found, truth, strict=True)}
    if example.boxes and "detection" in network.tasks:
        matches = match_boxes(raw.boxes.tolist(), raw.scores.tolist(), [box.to_list() for box in example.boxes])
        row["boxes_ap10"] = detection_figures([matches])["AP_IoU_0.10"]
    if example.grade is not None and "grading" in network.tasks:
        probability = raw.hgg_probability
        row["grade_right"] = float(probability is not None and (probability >= 0.5) == bool(example.grade))
    return row


def means_of(rows: Iterable[Mapping[str, float]]) -> dict[str, tuple[float, int]]:
    """Mean of each of `FIGURES` over the rows that have it, and their number."""
    listed = list(rows)
    known = {name: [row[name] for row in listed if name in row] for name in FIGURES}
    return {name: (float(np.mean(values)), len(values)) for name, values in known.items() if values}


def validate(
    trainer: Trainer, cases: Sequence[Case], cache: ExampleCache, inference: InferenceSettings, team: Team
) -> dict[str, float]:
    """Means of `FIGURES` for the averaged network; every process measures its share of the studies.

    The studies come out of the cache one by one, prepared once a run, and rounded there as those of training are.
    """
    network = trainer.averaged_network.eval()
    mine = [measure_study(network, cache.load(case), inference, trainer.device) for case in team.share(cases)]
    rows = [row for part in team.gather(mine) for row in part]
    return {name: round(mean, 4) for name, (mean, _) in means_of(rows).items()}


def _prepared(example: Example, spacing_mm: float) -> PreparedStudy:
    image = example.image.numpy()
    shape = (image.shape[1], image.shape[2], image.shape[3])
    grid = Grid(shape, np.diag([spacing_mm] * 3 + [1.0]))
    return PreparedStudy(image, (image != 0).any(axis=0), grid, grid, True)
