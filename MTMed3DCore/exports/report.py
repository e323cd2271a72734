"""``report.html``: one page for a person, complete in itself: no scripts, no external resources.

Its content security policy forbids everything but its own style and its own pictures, and every value is escaped, so a
study's name cannot smuggle anything in.
"""

from __future__ import annotations

from base64 import b64encode
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from MTMed3DCore.exports import report_content as content
from MTMed3DCore.exports.preview import MAX_LESIONS, KeyImages
from MTMed3DCore.exports.regions import LESION_COLOR, REGIONS
from MTMed3DCore.exports.report_content import TextTable, region_name
from MTMed3DCore.findings import REGION_LABELS, RESEARCH_USE, Findings

__all__ = ["region_name", "write_report"]

_COLORS = {region.key: region.color for region in REGIONS}


def write_report(findings: Findings, path: Path, preview: Path) -> None:
    """Write the report.

    Args:
        findings: what to report.
        path: the file to write.
        preview: a PNG, which the page carries in itself where there are no lesions with key images.
    """
    template = Template((files("MTMed3DCore.exports") / "report.html.template").read_text(encoding="utf-8"))
    page = template.substitute(
        study=escape(findings.study_id),
        notice=escape(RESEARCH_USE),
        created=findings.created.strftime("%Y-%m-%d %H:%M UTC"),
        examination=escape(content.examination(findings)),
        grade=_grade(findings),
        lesions=_lesions(findings),
        volumes=_volumes(findings),
        comparison=_comparison(findings),
        warnings=_warnings(findings),
        preparation=_preparation(findings),
        model=_table(content.model_table(findings), "wide"),
        provenance=_table(content.provenance_table(findings), "wide"),
        keys=_key_images(findings, preview),
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def _grade(findings: Findings) -> str:
    grade = findings.grade
    label, said = content.grade_sentence(findings)
    if grade is None:
        return f"<p>{escape(label)}: {escape(said)}.</p>"
    percent = 100 * grade.probability_hgg
    note = f"{content.GRADE_NOTE} {content.calibration_note(findings)}"
    return (
        f'<p class="grade"><strong>{escape(label)}</strong> {escape(said)}</p>'
        f'<div class="bar"><span style="width:{percent:.1f}%"></span></div>'
        f'<p class="muted">{escape(note)}</p>'
    )


def _lesions(findings: Findings) -> str:
    if not findings.lesions:
        return "<p>No lesion found.</p>"
    notes = (content.score_note(findings), content.RANO_NOTE)
    muted = "".join(f'<p class="muted">{escape(note)}</p>' for note in notes)
    rano = f"<p>{escape(content.rano_sentence(findings))}</p>"
    return f'<div class="scroll">{_table(content.overview_table(findings), "dense")}</div>{rano}{muted}'


def _key_images(findings: Findings, preview: Path) -> str:
    """Pictures and measurements of the lesions; the mid-planes where there is none."""
    if not findings.lesions:
        return f'<img src="{_data(preview.read_bytes())}" alt="Axial, coronal and sagittal plane through the middle">'
    images = KeyImages.of(findings)
    legend = "".join(f"<span>{_swatch(region.key)}{escape(region.name)}</span>" for region in REGIONS)
    edge = "rgb({},{},{})".format(*LESION_COLOR)
    box = f'<span><i class="swatch outline" style="border-color:{edge}"></i>box of the lesion</span>'
    parts = [f'<p class="legend">{legend}{box}</p>']
    for lesion in findings.lesions[:MAX_LESIONS]:
        title = escape(content.lesion_title(lesion))
        alt = f"Axial, coronal and sagittal plane through lesion {lesion.id} with regions, box and scale bar"
        parts.append(
            f'<section class="lesion"><h3>{title}</h3><img src="{_data(images.png(lesion))}" alt="{alt}">'
            f"{_facts(content.lesion_table(lesion, findings))}</section>"
        )
    hidden = content.hidden_sentence(findings, MAX_LESIONS)
    return "".join(parts) + (f"<p>{escape(hidden)}</p>" if hidden else "")


def _volumes(findings: Findings) -> str:
    table = content.volume_table(findings)
    rows = "".join(
        f"<tr><td>{_swatch(key)}{escape(name)}</td><td>{value}</td></tr>"
        for key, (name, value) in zip(REGION_LABELS, table.rows, strict=True)
    )
    return f"<table><thead><tr><th>region</th><th>volume (ml)</th></tr></thead><tbody>{rows}</tbody></table>"


def _comparison(findings: Findings) -> str:
    table = content.comparison_table(findings)
    if table is None:
        return ""
    said = f"<p>{escape(content.comparison_sentence(findings))}</p>"
    note = f'<p class="muted">{escape(content.COMPARISON_NOTE)}</p>'
    return f'<h2>Since the prior study</h2>{said}<div class="scroll">{_table(table)}</div>{note}'


def _preparation(findings: Findings) -> str:
    table = content.preparation_table(findings)
    return "<p>Not recorded.</p>" if table is None else _table(table, "wide")


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


def _table(table: TextTable, style: str = "") -> str:
    """A table; a row of which only the first cell says something is a heading within it."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join(_row(row) for row in table.rows)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(row: tuple[str, ...]) -> str:
    if row[0] and not any(row[1:]):
        return f'<tr><th colspan="{len(row)}" class="part">{escape(row[0])}</th></tr>'
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"


def _facts(table: TextTable) -> str:
    """Names and values in as many columns as the page is wide."""
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in table.rows)
    return f'<dl class="facts">{pairs}</dl>'
