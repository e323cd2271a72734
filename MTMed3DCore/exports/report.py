"""``report.html``: one page for a person, complete in itself: no scripts, no external resources.

Its content security policy forbids everything but its own style and its own picture, and every value is escaped, so a
study's name cannot smuggle anything in.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from MTMed3DCore.exports.regions import REGIONS
from MTMed3DCore.findings import REGION_LABELS, RESEARCH_USE, Findings, Lesion

_COLORS = {region.key: region.color for region in REGIONS}


def write_report(findings: Findings, path: Path, preview: Path) -> None:
    """Write the report.

    Args:
        findings: what to report.
        path: the file to write.
        preview: a PNG, which the page carries in itself.
    """
    template = Template((files("MTMed3DCore.exports") / "report.html.template").read_text(encoding="utf-8"))
    picture = b64encode(preview.read_bytes()).decode("ascii")
    page = template.substitute(
        study=escape(findings.study_id),
        notice=escape(RESEARCH_USE),
        created=findings.created.strftime("%Y-%m-%d %H:%M UTC"),
        grade=_grade(findings),
        lesions=_lesions(findings.lesions),
        volumes=_volumes(findings),
        warnings=_warnings(findings),
        provenance=_provenance(findings),
        preview=f"data:image/png;base64,{picture}",
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def region_name(key: str) -> str:
    """A key of `REGION_LABELS` for a person: ``whole_tumour`` as ``whole tumour``."""
    return key.replace("_", " ")


def _grade(findings: Findings) -> str:
    grade = findings.grade
    if grade is None:
        return "<p>No grade: no tumour was found, or the model does not grade.</p>"
    percent = 100 * grade.probability_hgg
    return (
        f'<p class="grade"><strong>{escape(grade.label)}</strong> probability of high grade {percent:.0f} %</p>'
        f'<div class="bar"><span style="width:{percent:.1f}%"></span></div>'
        "<p>Likelihood from imaging alone; the WHO grade needs tissue.</p>"
    )


def _lesions(lesions: Sequence[Lesion]) -> str:
    if not lesions:
        return "<p>No lesion found.</p>"
    volume_columns = (f"{region_name(name)} (ml)" for name in REGION_LABELS)
    header = ("#", "score", "found by", "size (mm)", "longest diameter (mm)", *volume_columns)
    rows = []
    for lesion in lesions:
        size = " × ".join(f"{extent:.0f}" for extent in lesion.box.size)
        found = "detection" if lesion.origin == "detection" else "segmented region"
        volumes = (f"{lesion.volumes_ml[name]:.2f}" for name in REGION_LABELS)
        rows.append((str(lesion.id), f"{lesion.score:.2f}", found, size, f"{lesion.longest_diameter_mm:.1f}", *volumes))
    return _table(header, rows)


def _volumes(findings: Findings) -> str:
    measured = findings.volumes_ml
    rows = "".join(
        f"<tr><td>{_swatch(name)}{escape(region_name(name))}</td><td>{measured[name]:.2f}</td></tr>"
        for name in REGION_LABELS
    )
    return f"<table><thead><tr><th>region</th><th>volume (ml)</th></tr></thead><tbody>{rows}</tbody></table>"


def _swatch(name: str) -> str:
    if name not in _COLORS:
        return '<i class="swatch"></i>'
    red, green, blue = _COLORS[name]
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def _warnings(findings: Findings) -> str:
    if not findings.warnings:
        return "<p>None.</p>"
    entries = (f"<li>{escape(notice.text)} <code>{escape(notice.code)}</code></li>" for notice in findings.warnings)
    return f'<ul class="warnings">{"".join(entries)}</ul>'


def _provenance(findings: Findings) -> str:
    model, grid = findings.model, findings.grid
    shape = " × ".join(str(size) for size in grid.shape)
    spacing = " × ".join(f"{size:.3g}" for size in grid.spacing)
    stages = [(stage, s) for stage, s in findings.timing_s.items() if stage not in ("write", "total")]
    rows = [
        ("model", f"{model.name} {model.version}"),
        ("trained on", model.trained_on),
        ("weights, SHA-256", model.sha256),
        *findings.sources.items(),
        ("T1ce grid", f"{shape} voxels of {spacing} mm"),
        *findings.software.items(),
        *((f"{stage}, seconds", f"{seconds:.2f}") for stage, seconds in stages),
    ]
    return _table(("", ""), rows, "wide")


def _table(header: Iterable[str], rows: Iterable[Sequence[str]], style: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
