"""The course of a federation as a picture: figures of the global model, and the sites' losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from MTMed3DCore.federation.measuring import FIGURES
from MTMed3DCore.federation.simulation import GLOBAL


def draw_courses(courses: Mapping[str, Sequence[Mapping[str, Any]]], picture: Path) -> None:
    """Draw the rounds of one or several methods.

    Args:
        courses: by method, records as `Coordinator.take` gives them.
        picture: PNG; replaced in one move.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [
        name
        for name in FIGURES
        if any(name in r.get("measured", {}).get(GLOBAL, {}) for c in courses.values() for r in c)
    ]
    figure = Figure(figsize=(4.2 * (len(shown) + 1), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    for panel, name in zip(axes, shown, strict=False):
        for method, rounds in courses.items():
            points = [
                (r["round"], r["measured"][GLOBAL][name])
                for r in rounds
                if name in r.get("measured", {}).get(GLOBAL, {})
            ]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
            if len(courses) == 1:
                _draw_sites(panel, rounds, name)
        panel.set_title(name.replace("_", " "))
        panel.set_ylim(-0.02, 1.02)
    for method, rounds in courses.items():
        points = [(r["round"], value) for r in rounds if (value := _loss(r)) is not None]
        if points:
            axes[-1].plot(*zip(*points, strict=True), marker="o", markersize=3, label=method)
    axes[-1].set_title("training loss, mean of sites and tasks")
    for panel in axes:
        panel.set_xlabel("round")
        panel.grid(alpha=0.3)
        if panel.get_lines():
            panel.legend(fontsize=8)
    partial = picture.with_name(f".{picture.name}")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(picture)


def _draw_sites(panel: Any, rounds: Sequence[Mapping[str, Any]], name: str) -> None:
    sites = sorted({site for r in rounds for site in r.get("measured", {})} - {GLOBAL})
    for site in sites:
        points = [
            (r["round"], r["measured"][site][name]) for r in rounds if name in r.get("measured", {}).get(site, {})
        ]
        if points:
            panel.plot(*zip(*points, strict=True), linewidth=1, linestyle="--", label=site)


def _loss(record: Mapping[str, Any]) -> float | None:
    values = [
        value
        for site in record["sites"].values()
        for name, value in site["figures"].items()
        if name.startswith("loss_")
    ]
    return sum(values) / len(values) if values else None
