"""``overview.html``: a cohort on one page, failures first; no scripts, nothing from elsewhere, all escaped.

The page is written study by study, so that no more than one thumbnail is in memory.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template
from urllib.parse import quote

from MTMed3DCore.cohort.folder import OVERVIEW, CohortFolder
from MTMed3DCore.cohort.rows import DONE, FAILED, PENDING, STAGES, Overall, Row, rows
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.exports import REPORT
from MTMed3DCore.findings import RESEARCH_USE
from MTMed3DCore.whole_file import writing_whole

_BODY = "$body"
_VOLUMES = {"whole_tumour": "whole", "tumour_core": "core", "enhancing": "enhancing"}
_HEADINGS = ("", "study", "grade", "P(HGG)", "lesions", *(f"{name} ml" for name in _VOLUMES.values()), "s", "warnings")


def write_overview(
    requests: Sequence[Request], folder: CohortFolder, statuses: Mapping[str, str], overall: Overall
) -> None:
    """Write the page."""
    template = (files("MTMed3DCore.cohort") / "overview.html.template").read_text(encoding="utf-8")
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    head, _, tail = template.partition(_BODY)
    values = {"title": escape(folder.root.name), "created": now, "notice": escape(RESEARCH_USE)}
    with writing_whole(folder.root / OVERVIEW) as stream:

        def write(text: str) -> None:
            stream.write(text.encode("utf-8"))

        write(Template(head).substitute(values))
        write(_totals(overall))
        sections = ((FAILED, "Failed", _failure), (PENDING, "Not analysed yet", _pending), (DONE, "Analysed", _done))
        for status, title, line in sections:
            count = overall.studies[status]
            if not count:
                continue
            headings = _HEADINGS if status == DONE else ("study", "reason", "remedy")[: 1 if status == PENDING else 3]
            head_cells = "".join(f"<th>{escape(each)}</th>" for each in headings)
            write(f'<h2>{title}: {count}</h2><div class="scroll"><table class="{status}">')
            write(f"<thead><tr>{head_cells}</tr></thead><tbody>\n")
            for row in rows(requests, folder, statuses):
                if row.status == status:  # which a result that cannot be read has only now
                    write(f"<tr>{line(row)}</tr>\n")
            write("</tbody></table></div>")
        write(tail)


def _totals(overall: Overall) -> str:
    done, grades = overall.studies[DONE], overall.grades
    entries = [
        ("studies", f"{overall.total}: {done} analysed, {overall.studies[FAILED]} failed, "
                    f"{overall.studies[PENDING]} not analysed yet"),
        ("failures", _counts(overall.failures)),
        ("grades", f"{grades['HGG']} HGG, {grades['LGG']} LGG, {grades['none']} without"),
        ("lesions", f"{overall.lesions} in {done - overall.tumour_free} studies; none in {overall.tumour_free}"),
        ("warnings", _counts(overall.warnings)),
        ("last run", f"{done - overall.kept} analysed in {duration(overall.wall_s)}; {overall.kept} stood already"),
    ]  # fmt: skip
    if done:
        means = ", ".join(f"{stage} {overall.seconds[stage] / done:.1f}" for stage in STAGES)
        entries.append(("seconds a study", f"{means} (of one study by itself; several are worked on at a time)"))
    body = "".join(f"<tr><td>{name}</td><td>{escape(text)}</td></tr>" for name, text in entries)
    return f'<table class="words"><tbody>{body}</tbody></table>'


def duration(seconds: float) -> str:
    """Seconds in words: ``41 s``, ``12 min 3 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{code} {count}" for code, count in counts.most_common()) or "none"


def _failure(row: Row) -> str:
    refusal = row.refusal
    text, code, remedy = ("", "", "") if refusal is None else (refusal.text, refusal.code, refusal.remedy)
    return f"<td>{escape(row.name)}{_outdated(row)}</td><td>{escape(text)} <code>{escape(code)}</code></td>" + (
        f"<td>{escape(remedy)}</td>"
    )


def _pending(row: Row) -> str:
    return f"<td>{escape(row.name)}{_outdated(row)}</td>"


def _outdated(row: Row) -> str:
    return "<small>an outdated result lies in its folder</small>" if row.outdated else ""


def _done(row: Row) -> str:
    findings, picture = row.findings or {}, row.picture()
    source = "" if picture is None else f"data:image/jpeg;base64,{b64encode(picture).decode('ascii')}"
    image = f'<img src="{source}" alt="Axial slice of {escape(row.name)} with regions">' if source else ""
    link = f"{quote(row.folder.name)}/{REPORT}"
    grade = findings["grade"]
    cells = [
        image,
        f'<a href="{link}">{escape(row.name)}</a>',
        "" if grade is None else escape(grade["label"]),
        "" if grade is None else f"{grade['probability_hgg']:.2f}",
        str(len(findings["lesions"])),
        *(f"{findings['volumes_ml'].get(region, 0.0):.1f}" for region in _VOLUMES),
        f"{findings['timing_s'].get('total', 0.0):.1f}",
        "<br>".join(escape(notice["text"]) for notice in findings["warnings"]),
    ]
    return "".join(f"<td>{cell}</td>" for cell in cells)
