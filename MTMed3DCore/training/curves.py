"""The course of a run as a picture: losses, task weights, validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMOOTHED_OVER = 50
"""Steps of the running mean in which the losses are drawn."""


def draw_curves(history: Path, validation: Path, tasks: Sequence[str], picture: Path) -> None:
    """Draw the rows of both files; the picture replaces an earlier one in one move.

    Args:
        history, validation: files of rows, one JSON object a line.
        tasks: in the order of the weights.
        picture: PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, checks = _rows(history), _rows(validation)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, weights, figures = figure.subplots(1, 3)
    for index, task in enumerate(tasks):
        seen = [(row["step"], row[task]) for row in rows if task in row]
        if seen:
            steps, values = np.array(seen).T
            losses.plot(steps, _running_mean(values), label=task)
        weights.plot([row["step"] for row in rows], [row["weights"][index] for row in rows], label=task)
    for name in sorted({key for row in checks for key in row} - {"step"}):
        points = [(row["step"], row[name]) for row in checks if name in row]
        figures.plot(*zip(*points, strict=True), marker="o", label=name.replace("_", " "))
    titles = ((losses, f"loss, mean of {SMOOTHED_OVER} steps"), (weights, "task weight"), (figures, "validation"))
    for axes, title in titles:
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=8)
    figures.set_ylim(-0.02, 1.02)  # a point at either end is whole
    partial = picture.with_name(f".{picture.name}")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(picture)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _running_mean(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    total = np.cumsum(np.insert(values, 0, 0.0))
    width = np.minimum(np.arange(1, len(values) + 1), SMOOTHED_OVER)
    upper = np.arange(1, len(values) + 1)
    mean: np.ndarray[Any, Any] = (total[upper] - total[upper - width]) / width
    return mean
