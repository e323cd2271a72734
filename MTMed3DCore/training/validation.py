"""How well the averaged network does on whole studies while it trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from MTMed3DCore.datalist import Case
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.training.distributed import Team
from MTMed3DCore.training.examples import prepare_case
from MTMed3DCore.training.patches import region_channels
from MTMed3DCore.training.trainer import Trainer


def validate(trainer: Trainer, cases: Sequence[Case], inference: InferenceSettings, team: Team) -> dict[str, float]:
    """Mean Dice on the working grid and share of right grades; every process measures its share of the studies."""
    network = trainer.averaged_network.eval()
    rows: list[list[float]] = []
    grades: list[bool] = []
    with torch.inference_mode():
        for case in team.share(cases):
            example, prepared = prepare_case(case, inference.spacing_mm, inference.normalisation)
            raw = run_network(network, prepared, inference, trainer.device)
            if example.labels is not None and "segmentation" in trainer.settings.tasks:
                truth = region_channels(example.labels).numpy() > 0
                found = raw.regions >= inference.region_threshold
                rows.append([dice(f, t) for f, t in zip(found, truth, strict=True)])
            if example.grade is not None and raw.hgg_probability is not None:
                grades.append((raw.hgg_probability >= 0.5) == bool(example.grade))
    rows = [row for part in team.gather(rows) for row in part]
    grades = [right for part in team.gather(grades) for right in part]
    figures: dict[str, float] = {}
    if rows:
        core, whole, enhancing = np.mean(rows, axis=0).tolist()
        figures |= {"whole_tumour": whole, "tumour_core": core, "enhancing": enhancing}
    if grades:
        figures["grade_right"] = float(np.mean(grades))
    return {name: round(value, 4) for name, value in figures.items()}
