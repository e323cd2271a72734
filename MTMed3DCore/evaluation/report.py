"""``report.html``: an evaluation as one page for a supplement; no scripts, nothing from elsewhere, all escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from MTMed3DCore.evaluation import detection, grading
from MTMed3DCore.evaluation.crossvalidation import fold_spread
from MTMed3DCore.evaluation.document import Evaluation, box_counts
from MTMed3DCore.evaluation.figures import REGION_NAMES
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.evaluation.results import METHOD_NAMES, MODEL, REGION_FIGURES, THRESHOLDS, CaseResult
from MTMed3DCore.evaluation.rules import RULE_TEXT
from MTMed3DCore.evaluation.summary import row_name, segmentation_difference
from MTMed3DCore.findings import RESEARCH_USE

SHORT = {"dice": "Dice", "hd95_mm": "HD95 (mm)", "lesion_dice": "lesion-wise Dice",
         "lesion_hd95_mm": "lesion-wise HD95 (mm)"}  # fmt: skip
GRADING_NAMES = {"auc": "AUC", "brier": "Brier", "calibration_error": "calibration error"}
DETECTION_NAMES = {"sensitivity": "lesions found", "false_per_case": "false boxes a case"}
_ABSENT = "–"


def report_page(evaluation: Evaluation, pictures: Mapping[str, bytes], cases: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        evaluation: what to report.
        pictures: PNGs by name, of ``regions``, ``froc`` and ``reliability``.
        cases: PNGs of the worst cases by id, worst first.
    """
    template = Template((files("MTMed3DCore.evaluation") / "report.html.template").read_text(encoding="utf-8"))
    summary = evaluation.summary
    parts = [
        _about(evaluation),
        _notes(evaluation),
        _segmentation(evaluation, pictures.get("regions")),
        _detection(evaluation, pictures.get("froc")),
        _grading(summary["grading"], evaluation.temperature, pictures.get("reliability")),
        _folds(evaluation.folds),
        _worst(cases),
        _cases(evaluation.results),
        "<h2>How it was measured</h2><ul>" + "".join(f"<li>{escape(text)}</li>" for text in RULE_TEXT) + "</ul>",
    ]
    return template.substitute(
        title=escape(evaluation_title(evaluation)),
        created=escape(evaluation.created),
        notice=escape(RESEARCH_USE),
        body="\n".join(part for part in parts if part),
    )


def evaluation_title(evaluation: Evaluation) -> str:
    """What was evaluated, in a few words."""
    if evaluation.folds is not None:
        return f"Cross-validation over {len(evaluation.folds)} evaluations"
    model = evaluation.source.get("model")
    return f"{model['name']} {model['version']}" if model else "Stored results"


def number(value: float | None, digits: int = 3) -> str:
    """A number as the tables show it."""
    return _ABSENT if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def with_interval(entry: Mapping[str, Any], digits: int = 3) -> str:
    """A figure and the ends of its interval in words."""
    text = number(entry["value"], digits)
    return text if entry["low"] is None else f"{text} ({number(entry['low'], digits)}–{number(entry['high'], digits)})"


def by_badness(results: Sequence[CaseResult]) -> list[CaseResult]:
    """Worst first: by mean Dice, cases without one after them by the share of lesions found."""

    def badness(result: CaseResult) -> tuple[bool, float, str]:
        mean = result.mean_dice
        if mean is not None:
            return False, mean, result.id
        counts = box_counts(result)
        found, true, false = (counts[f"boxes_{name}"] or 0 for name in ("found", "true", "false"))
        return True, 2 * found / max(1, true + found + false), result.id

    return sorted(results, key=badness)


def _about(evaluation: Evaluation) -> str:
    data, bootstrap, results = evaluation.data, evaluation.bootstrap, evaluation.results
    patients = len({result.patient for result in results})
    rows = [("cases", f"{len(results)} of {data['cases']} measured, {patients} patients")]
    model = evaluation.source.get("model")
    if model:
        rows += [("model", f"{model['name']} {model['version']}, weights SHA-256 {model['sha256']}")]
        rows += [("trained on", model["trained_on"])]
    for each in evaluation.source.get("evaluations", ()):
        if each.get("model"):
            rows += [
                ("model", f"{each['model']['name']} {each['model']['version']}, SHA-256 {each['model']['sha256']}")
            ]
    if "predictions" in evaluation.source:
        rows += [("results of", Path(evaluation.source["predictions"]).name)]
    if "list" in data:
        rows += [("data list", f"{Path(data['list']).name}, SHA-256 {data['sha256']}")]
        rows += [("part", "all cases" if data["fold"] is None else f"fold {data['fold']}")]
    rows += [("intervals", f"{bootstrap.confidence:.0%}, {bootstrap.resamples} bootstrap resamples of the patients, "
              f"seed {bootstrap.seed}")]  # fmt: skip
    return _words(rows)


def _notes(evaluation: Evaluation) -> str:
    entries = [escape(note) for note in evaluation.notes]
    failures = evaluation.failures
    if failures:
        entries.append(
            f"Could not be measured, and in none of the figures: {len(failures)} of {evaluation.data['cases']} cases:"
        )
        entries += [f"{escape(each.id)}: {escape(each.text)}" for each in failures]
    return (
        "<h2>To be read first</h2><ul>" + "".join(f"<li>{each}</li>" for each in entries) + "</ul>" if entries else ""
    )


def _segmentation(evaluation: Evaluation, picture: bytes | None) -> str:
    summary, results = evaluation.summary["segmentation"], evaluation.results
    if summary is None:
        return ""
    difference = segmentation_difference(results, evaluation.bootstrap)
    header = ["", *(SHORT[name] for name in REGION_FIGURES), "lesions", "missed", "false"]
    rows, own = [], []
    for region in EVALUATED:
        for method, regions in summary["methods"].items():
            entry = regions[region]
            counts = [str(entry[name]) for name in ("lesions", "missed", "false")]
            rows.append([_region_row(region, row_name(results, "segmentation", method)), *_cells(entry), *counts])
            own.append(method == MODEL)
        if difference:
            name = f"model minus {row_name(results, 'segmentation', THRESHOLDS)}"
            rows.append([_region_row(region, name), *_cells(difference[region]), *[""] * 3])
            own.append(False)
    caption = (
        f"{summary['cases']} cases. Mean, below it its interval, below that median [quartiles]. "
        "Lesions by the lesion-wise rules, summed over cases. A difference is taken over the cases of both."
    )
    table = _table(header, rows, own, caption)
    text = "Every case is a point; boxes are quartiles. HD95 is drawn linearly up to 10 mm, by its logarithm above."
    return f"<h2>Segmentation</h2>{table}{_figure(picture, text)}"


def _region_row(region: str, name: str) -> str:
    return f"{REGION_NAMES[region]}<small>{escape(name)}</small>"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    return [_cell(entry[name], 1 if name.endswith("mm") else 3) for name in REGION_FIGURES]


def _detection(evaluation: Evaluation, picture: bytes | None) -> str:
    summary = evaluation.summary["detection"]
    if summary is None:
        return ""
    header = ["", *(DETECTION_NAMES.get(name, name) for name in detection.FIGURES)]
    names = {m: escape(row_name(evaluation.results, "detection", m)) for m in summary["methods"]}
    methods = summary["methods"].items()
    rows = [[names[m], *(_cell(e["figures"][name]) for name in detection.FIGURES)] for m, e in methods]
    own = [m == MODEL for m in names]
    rows += [
        [f"model minus {names[m]}", *(_cell(e["difference"][name]) for name in detection.FIGURES)]
        for m, e in methods
        if "difference" in e
    ]
    caption = (
        f"{summary['lesions']} lesions in {summary['cases']} cases, with intervals. The last two columns count every "
        "box that the analysis gives, at IoU 0.1. A difference is taken over the cases of both."
    )
    table = _table(header, rows, own, caption)
    return f"<h2>Detection</h2>{table}{_figure(picture, 'Free-response curve at IoU 0.1.')}"


def _grading(summary: Mapping[str, Any] | None, temperature: Mapping[str, Any] | None, picture: bytes | None) -> str:
    if summary is None:
        return ""
    header = ["", *(GRADING_NAMES.get(name, name.replace("_", " ")) for name in grading.FIGURES)]
    methods = summary["methods"].items()
    rows = [[escape(METHOD_NAMES[m]), *(_cell(e["figures"][name]) for name in grading.FIGURES)] for m, e in methods]
    caption = (
        f"{summary['hgg']} HGG and {summary['lgg']} LGG, with intervals; {summary['ungraded']} of them the model left "
        "without a grade. High grade is positive. Brier and calibration error: less is better."
    )
    table = _table(header, rows, [m == MODEL for m, _ in methods], caption)
    fitted = ""
    if temperature:
        fitted = (
            f"<p>Temperature {temperature['value']:.3f}, fitted on {temperature['cases']} graded cases of "
            f"{escape(temperature['fitted_on'])}, none of whose patients is evaluated here.</p>"
        )
    text = "Reliability: share of high grades among cases of similar probability; below it the number of cases."
    return f"<h2>Grading</h2>{table}{fitted}{_figure(picture, text)}"


def _folds(folds: Sequence[Mapping[str, Any]] | None) -> str:
    if folds is None:
        return ""
    spread = fold_spread(folds)
    names = [str(n) if (n := fold["fold"]) is not None else escape(fold["folder"]) for fold in folds]
    header = ["figure of the model", *(f"fold {name} ({f['cases']})" for name, f in zip(names, folds, strict=True))]
    rows = []
    for figure, (mean, deviation, having) in spread.items():
        digits = 1 if figure.endswith("mm") else 3
        cells = [number(fold["figures"].get(figure), digits) for fold in folds]
        of = "" if having == len(folds) else f"<small>folds: {having}</small>"
        whole = f"{number(mean, digits)} ± {number(deviation, digits)}{of}"
        rows.append([escape(_figure_name(figure)), *cells, whole])
    caption = "Each fold by itself, number of cases in brackets; mean and standard deviation over the folds."
    return f"<h2>Folds</h2>{_table([*header, 'mean ± SD'], rows, [], caption)}"


def _figure_name(key: str) -> str:
    part, _, name = key.partition(" ")
    names = {"detection": DETECTION_NAMES, "grading": GRADING_NAMES}.get(part, SHORT)
    plain = name.replace("_", " ") if part == "grading" else name
    return f"{REGION_NAMES.get(part, part)}: {names.get(name, plain)}"


def _worst(cases: Mapping[str, bytes]) -> str:
    text = "the axial slice in which most voxels are wrong. Green: truth, orange and dashed: model."
    figures = [_figure(picture, f"{case_id}: {text}") for case_id, picture in cases.items()]
    return f"<h2>Worst cases</h2>{''.join(figures)}" if figures else ""


def _cases(results: Sequence[CaseResult]) -> str:
    header = ["case", "grade", "P(HGG)", *(f"{r} {m}" for m in ("Dice", "HD95") for r in ("WT", "TC", "ET"))]
    header += [f"lesion-wise Dice {r}" for r in ("WT", "TC", "ET")] + ["lesions", "found", "false boxes"]
    rows = []
    for result in by_badness(results):
        regions = result.methods[MODEL].regions if MODEL in result.methods else None
        cells = []
        for name in ("dice", "hd95_mm", "lesion_dice"):
            digits = 1 if name == "hd95_mm" else 3
            cells += [_ABSENT if regions is None else number(getattr(regions[r], name), digits) for r in EVALUATED]
        counts = [_ABSENT if count is None else str(count) for count in box_counts(result).values()]
        grade = [result.grade or "unknown", number(result.probability_hgg, 2)]
        rows.append([escape(result.id), *grade, *cells, *counts])
    caption = "Every case, worst mean Dice first. All columns and the baseline's are in cases.csv."
    return f"<h2>Cases</h2>{_table(header, rows, [], caption)}"


def _cell(entry: Mapping[str, Any], digits: int = 3) -> str:
    low, high = entry["low"], entry["high"]
    lines = [number(entry["value"], digits)]
    if low is not None:
        lines.append(f"<small>{number(low, digits)} – {number(high, digits)}</small>")
    if "quartiles" in entry:
        quarter, median, three = (number(value, digits) for value in entry["quartiles"])
        lines.append(f"<small>{median} [{quarter}, {three}]</small>")
    return "".join(lines)


def _table(header: Iterable[str], rows: Iterable[Sequence[str]], own: Sequence[bool], caption: str) -> str:
    """A table of cells that are HTML already; rows of the model are set off."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for index, row in enumerate(rows):
        style = ' class="own"' if index < len(own) and own[index] else ""
        body += f"<tr{style}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n"
    start = f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
    return f"{start}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _words(rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<div class="scroll"><table class="words"><tbody>{body}</tbody></table></div>'


def _figure(picture: bytes | None, text: str) -> str:
    if picture is None:
        return ""
    source = f"data:image/png;base64,{b64encode(picture).decode('ascii')}"
    return f'<figure><img src="{source}" alt="{escape(text)}"><figcaption>{escape(text)}</figcaption></figure>'
