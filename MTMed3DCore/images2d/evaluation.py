"""A model against the truth of a list of images: Dice and IoU, accuracy of the labels, average precision of the boxes.

Dice and IoU of a region are means over the images that show it, and accuracy, sensitivity and specificity of labels
that do not exclude each other are pooled over all of them at 0.5: the conventions of Bui et al. (arXiv 2412.00351).
"""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from MTMed3DCore.evaluation.detection import Matches, detection_figures, match_boxes
from MTMed3DCore.exports.atomic import publishing
from MTMed3DCore.findings import RESEARCH_USE
from MTMed3DCore.images2d.imagelist import ImageCase
from MTMed3DCore.images2d.pixels import read_mask
from MTMed3DCore.images2d.prediction import predict
from MTMed3DCore.images2d.settings import ImageSettings
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.progress import Progress, silent

SCHEMA = "mtmed3d.image-evaluation/1"
Row = dict[str, float | str]


def evaluate_images(
    network: TaskNetwork,
    settings: ImageSettings,
    cases: Sequence[ImageCase],
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> tuple[dict[str, float], list[Row]]:
    """Figures over images, and a row for each of them.

    Args:
        network: in evaluation mode on `device`.
        settings: of its bundle.
        cases: of a list with the same regions and labels.
        progress: told as stage ``evaluate``, and may cancel there.

    Returns:
        Figures by name; one that the cases cannot tell is left out.
    """
    rows: list[Row] = []
    matches: list[Matches] = []
    pairs: list[tuple[list[float], list[int]]] = []
    for number, case in enumerate(cases):
        progress("evaluate", number / len(cases), case.id)
        found = predict(network, settings, case.image, device)
        row: Row = {"id": case.id}
        if found.mask is not None and case.mask is not None:
            row |= region_overlap(found.mask, read_mask(case.mask, settings.truths.values), settings.truths.regions)
        if case.boxes is not None and settings.anchor_shapes:
            matches.append(match_boxes(_lifted(found.boxes), found.scores, _lifted(case.boxes)))
            row |= {"boxes_found": float(len(found.boxes)), "boxes_true": float(len(case.boxes))}
        if found.labels and case.labels is not None:
            chances = [found.labels[name] for name in settings.truths.labels]
            truth = [case.labels[name] for name in settings.truths.labels]
            pairs.append((chances, truth))
            row |= {f"probability_{name}": chance for name, chance in found.labels.items()}
        rows.append(row)
    figures: dict[str, float] = {}
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name.startswith(("dice_", "iou_"))]
    for name in names:
        values = [float(row[name]) for row in rows if name in row]
        figures[name] = float(np.mean(values))
    if pairs:
        exclusive = settings.truths.label_activation == "softmax"
        figures |= label_figures(np.array([c for c, _ in pairs]), np.array([t for _, t in pairs]), exclusive=exclusive)
    if matches:
        figures |= {name: value for name, value in detection_figures(matches).items() if not np.isnan(value)}
    progress("evaluate", 1.0, f"{len(cases)} images")
    return figures, rows


def region_overlap(
    found: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], regions: Sequence[str]
) -> dict[str, float]:
    """Dice and IoU of each region that the truth shows."""
    figures: dict[str, float] = {}
    for number, name in enumerate(regions, start=1):
        a, b = found == number, truth == number
        if b.any():
            shared = float((a & b).sum())
            figures[f"dice_{name}"] = 2 * shared / float(a.sum() + b.sum())
            figures[f"iou_{name}"] = shared / float((a | b).sum())
    return figures


def label_figures(
    chances: npt.NDArray[np.floating[Any]], truth: npt.NDArray[np.integer[Any]], *, exclusive: bool
) -> dict[str, float]:
    """Accuracy, and for labels that do not exclude each other sensitivity and specificity, pooled over labels.

    Args:
        chances: probabilities (N, L).
        truth: 0 and 1 (N, L).
        exclusive: each image has exactly one label.
    """
    if exclusive:
        return {"accuracy": float((chances.argmax(axis=1) == truth.argmax(axis=1)).mean())}
    said, true = chances >= 0.5, truth == 1
    figures = {"accuracy": float((said == true).mean())}
    if true.any():
        figures["sensitivity_labels"] = float(said[true].mean())
    if (~true).any():
        figures["specificity_labels"] = float((~said[~true]).mean())
    return figures


def write_report(
    folder: Path,
    figures: dict[str, float],
    rows: Sequence[Row],
    *,
    model: dict[str, Any],
    skipped: Sequence[tuple[str, str]],
    overwrite: bool,
) -> Path:
    """Write ``evaluation.json``, ``cases.csv`` and ``report.html``.

    Raises:
        WrongUse: the folder holds something else, see `publishing`.
    """
    document = {
        "schema": SCHEMA,
        "notice": RESEARCH_USE,
        "model": model,
        "images": len(rows),
        "figures": figures,
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped],
    }
    with publishing(folder, overwrite=overwrite, last="evaluation.json") as partial:
        with (partial / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
        (partial / "report.html").write_text(_page(document), encoding="utf-8")
        (partial / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return folder / "evaluation.json"


def _page(document: dict[str, Any]) -> str:
    cells = "".join(f"<tr><td>{html.escape(n)}</td><td>{v:.3f}</td></tr>" for n, v in document["figures"].items())
    model = html.escape(f"{document['model']['name']} {document['model']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{model}</title>'
        f"<h1>{model} on {document['images']} images</h1><p><strong>{html.escape(RESEARCH_USE)}</strong></p>"
        f"<table><tr><th>figure</th><th>value</th></tr>{cells}</table>"
        "<p>Dice and IoU: means over the images that show a region. Labels: pooled, at probability 0.5.</p></html>\n"
    )


def _lifted(boxes: Sequence[Sequence[float]]) -> list[list[float]]:
    """Boxes of the plane as boxes one voxel thick, which overlap by the same share."""
    return [[x0, y0, 0.0, x1, y1, 1.0] for x0, y0, x1, y1 in boxes]
