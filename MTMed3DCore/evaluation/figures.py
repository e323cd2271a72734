"""The figures of a report as PNG: boxplots of the regions, FROC, and the reliability of the grade."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from MTMed3DCore.evaluation.grading import BINS
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.evaluation.results import (
    ALWAYS_HGG,
    COMPONENTS,
    METHOD_NAMES,
    MODEL,
    SCALED,
    THRESHOLDS,
    CaseResult,
)
from MTMed3DCore.evaluation.summary import row_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGION_NAMES = {"whole_tumour": "whole tumour", "tumour_core": "tumour core", "enhancing": "enhancing tumour"}
_COLORS = {MODEL: "#0b6e99", SCALED: "#7a4da3", COMPONENTS: "#c25a00", THRESHOLDS: "#6b6b6b"}
_PANELS = (
    ("dice", "Dice", (-0.03, 1.03)),
    ("lesion_dice", "lesion-wise Dice", (-0.03, 1.03)),
    ("hd95_mm", "HD95 (mm)", None),
    ("lesion_hd95_mm", "lesion-wise HD95 (mm)", None),
)
_DPI = 150
_LINEAR_BELOW_MM = 10.0


def draw_regions(results: Sequence[CaseResult]) -> bytes | None:
    """Boxplots of every measure by region, model beside thresholds, with every case as a point; None without any."""
    scored = {
        method: [r.methods[method].regions for r in results if method in r.methods and r.methods[method].regions]
        for method in (MODEL, THRESHOLDS)
    }
    if not scored[MODEL]:
        return None
    figure = _figure(10.5, 7.2)
    shift = {MODEL: -0.19, THRESHOLDS: 0.19}
    random = np.random.default_rng(0)  # points are spread sideways, the same way in every report
    for axes, (name, title, limits) in zip(figure.subplots(2, 2).ravel(), _PANELS, strict=True):
        for method, regions in scored.items():
            for place, region in enumerate(EVALUATED):
                values = [getattr(scores[region], name) for scores in regions if scores]
                at = place + shift[method]
                _box(axes, values, at, _COLORS[method])
                spread = at + random.uniform(-0.1, 0.1, len(values))
                label = row_name(results, "segmentation", method) if place == 0 else None
                axes.scatter(spread, values, s=12, color=_COLORS[method], alpha=0.65, linewidths=0, label=label)
        axes.set_xticks(range(len(EVALUATED)), [REGION_NAMES[region] for region in EVALUATED])
        axes.set_ylabel(title)
        axes.grid(axis="y", alpha=0.25)
        if limits is None:
            axes.set_yscale("symlog", linthresh=_LINEAR_BELOW_MM)
            axes.set_ylim(-0.5, 500)
            ticks = (0, 2, 5, 10, 30, 100, 374)
            axes.set_yticks(ticks, [str(tick) for tick in ticks])
            axes.set_yticks([], minor=True)
        else:
            axes.set_ylim(*limits)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return _png(figure)


def _box(axes: Axes, values: Sequence[float], at: float, color: str) -> None:
    """Median, quartiles, and whiskers to the furthest case within 1.5 interquartile ranges."""
    lines: dict[str, Any] = {"color": color, "linewidth": 1.2}
    styles: dict[str, Any] = {f"{part}props": lines for part in ("box", "whisker", "cap")}
    median = {"color": color, "linewidth": 2.4}
    axes.boxplot(values, positions=[at], widths=0.3, showfliers=False, manage_ticks=False, medianprops=median, **styles)


def draw_froc(detection: Mapping[str, Any] | None, results: Sequence[CaseResult]) -> bytes | None:
    """FROC curves of every method with boxes, over the cases of `results` that it has; None where no lesion is true."""
    curves = {m: entry["froc"] for m, entry in detection["methods"].items() if "froc" in entry} if detection else {}
    if not detection or not curves:
        return None
    figure = _figure(6.2, 4.6)
    axes = figure.subplots()
    most = max(1.0, *(curve["false_per_case"][-1] for curve in curves.values()))
    for method, curve in curves.items():
        false, sensitivity = curve["false_per_case"], curve["sensitivity"]
        color = _COLORS[method]
        name = row_name(results, "detection", method)
        axes.step(false, sensitivity, where="post", alpha=0.85, color=color, label=name, linewidth=1.8)
        axes.plot([false[-1], most], [sensitivity[-1]] * 2, ":", color=color, linewidth=1.2)  # there are no more boxes
        axes.plot(false[-1], sensitivity[-1], "o", color=_COLORS[method], markersize=6)
    axes.set(xlabel="false boxes a case", ylabel="lesions found at IoU 0.1", ylim=(-0.03, 1.03), xlim=(0, 1.03 * most))
    axes.set_title(f"{detection['lesions']} lesions in {detection['cases']} cases; dots: every box", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return _png(figure)


def draw_reliability(grading: Mapping[str, Any] | None) -> bytes | None:
    """Share of high grades against the probability given, with the number of cases in each bin; None without grades."""
    curves = {m: e["reliability"] for m, e in grading["methods"].items() if m != ALWAYS_HGG} if grading else {}
    if not grading or not any(curves.values()):
        return None
    figure = _figure(6.2, 5.2)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1.2)
    width = 0.8 / BINS / len(curves)
    for number, (method, bins) in enumerate(curves.items()):
        p, share, count = ([each[name] for each in bins] for name in ("probability", "share", "count"))
        name = METHOD_NAMES[method]
        axes.plot(p, share, "o-", color=_COLORS[method], label=name, linewidth=1.5, alpha=0.85)
        centers = (np.minimum(np.floor(np.multiply(p, BINS)), BINS - 1) + 0.5) / BINS
        counts.bar(centers + (number - (len(curves) - 1) / 2) * width, count, width=width, color=_COLORS[method])
    axes.set(ylabel="share of high grades", xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
    axes.set_title(f"{grading['hgg']} HGG, {grading['lgg']} LGG", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    counts.set(xlabel="probability of high grade", ylabel="cases")
    counts.yaxis.get_major_locator().set_params(integer=True)
    for each in (axes, counts):
        each.grid(alpha=0.25)
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()
