"""``report.pdf``: the report on A4 pages, for archives and for encapsulation in DICOM.

Drawn with matplotlib, which draws the key images anyway: text stays text, fonts are embedded, and no further library
has to be installed into 3D Slicer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.exports import report_content as content
from MTMed3DCore.exports.preview import MAX_LESIONS, KeyImages
from MTMed3DCore.exports.regions import REGIONS
from MTMed3DCore.exports.report_content import TextTable
from MTMed3DCore.findings import RESEARCH_USE, Findings

if TYPE_CHECKING:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, MARGIN_IN = 8.27, 11.69, 0.7
_INK, _MUTED, _LINE, _ACCENT = "#1b242d", "#5a6672", "#d7dde3", "#b35c00"
_LINE_IN = 0.165
_USABLE_IN = WIDTH_IN - 2 * MARGIN_IN
_OVERVIEW_IN = (0.22, 0.55, 0.5, 0.77, 0.75, 0.6, 0.6, 0.56, 0.56, 0.66, 0.56, 0.54)
_PAIRS_IN = (1.45, 1.985, 1.45, 1.985)


def write_report_pdf(findings: Findings, path: Path) -> None:
    """Write the report as PDF.

    Args:
        findings: what to report.
        path: the file to write.
    """
    import matplotlib
    from matplotlib.backends.backend_pdf import PdfPages

    # Type 42 fonts stay searchable text; a fixed date keeps equal findings equal files.
    with matplotlib.rc_context({"pdf.fonttype": 42, "text.parse_math": False}):
        about = {"Title": f"MTMed3D findings: {findings.study_id}", "Subject": RESEARCH_USE, "Creator": "MTMed3D",
                 "CreationDate": findings.created}  # fmt: skip
        with PdfPages(path, metadata=about) as pages:
            sheet = _Sheets(pages, findings)
            _summary(sheet, findings)
            _lesions(sheet, findings)
            sheet.heading("Preparation")
            preparation = content.preparation_table(findings)
            sheet.table(preparation) if preparation else sheet.paragraph("Not recorded.")
            sheet.heading("Model")
            sheet.table(content.model_table(findings))
            sheet.heading("Provenance")
            sheet.table(content.provenance_table(findings))
            sheet.close()


def _summary(sheet: _Sheets, findings: Findings) -> None:
    sheet.heading("Warnings")
    for notice in findings.warnings:
        sheet.paragraph(f"• {notice.text} ({notice.code})")
    if not findings.warnings:
        sheet.paragraph("None.")
    sheet.heading("Grade")
    label, said = content.grade_sentence(findings)
    sheet.paragraph(f"{label}: {said}.", weight="bold")
    if findings.grade is not None:
        sheet.paragraph(f"{content.GRADE_NOTE} {content.calibration_note(findings)}", color=_MUTED)
    sheet.heading("Volumes in the whole study")
    sheet.pairs(TextTable(("", ""), tuple((name, f"{ml} ml") for name, ml in content.volume_table(findings).rows)))
    compared = content.comparison_table(findings)
    if compared is not None:
        sheet.heading("Since the prior study", room=2.0)
        sheet.paragraph(content.comparison_sentence(findings))
        sheet.table(compared)
        sheet.paragraph(content.COMPARISON_NOTE, color=_MUTED)


def _lesions(sheet: _Sheets, findings: Findings) -> None:
    sheet.heading("Lesions", room=1.5)
    if not findings.lesions:
        sheet.paragraph("No lesion found.")
        sheet.picture(KeyImages.of(findings), None, 2.3)
        return
    sheet.table(content.overview_table(findings), _OVERVIEW_IN, size=7)
    sheet.paragraph(content.rano_sentence(findings))
    sheet.paragraph(content.score_note(findings), color=_MUTED, size=8)
    sheet.paragraph(content.RANO_NOTE, color=_MUTED, size=8)
    images = KeyImages.of(findings)
    for lesion in findings.lesions[:MAX_LESIONS]:
        height = 2.3 if lesion.rano is None else 1.85
        table = content.lesion_table(lesion, findings)
        sheet.heading(content.lesion_title(lesion), room=0.9 + height + len(table.rows) / 2 * _LINE_IN)
        sheet.picture(images, lesion, height)
        sheet.legend([(region.name, region.rgb) for region in REGIONS])
        sheet.pairs(table)
    hidden = content.hidden_sentence(findings, MAX_LESIONS)
    if hidden:
        sheet.paragraph(hidden)


@cache
def _width_in(text: str, size: float, weight: str) -> float:
    """Width of a text in inches."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def _wrapped(text: str, width: float, size: float, weight: str) -> list[str]:
    """Lines no wider than `width` inches; a word that is too wide alone is cut."""
    lines = [""]
    for word in text.split():
        while _width_in(word, size, weight) > width:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _width_in(word[:n], size, weight) <= width)
            lines[-1:] = [lines[-1], word[:fits], ""] if lines[-1] else [word[:fits], ""]
            word = word[fits:]
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _width_in(longer, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


class _Sheets:
    """Sheets filled from top to bottom, and written when their number is known; lengths in inches.

    Args:
        pages: the open file.
        findings: for title and footer.
    """

    def __init__(self, pages: PdfPages, findings: Findings) -> None:
        self._pages, self._findings = pages, findings
        self._figures: list[Figure] = []
        self._figure: Figure
        self._left: float
        self._open()

    def heading(self, text: str, room: float = 0.8) -> None:
        """A heading, on a new sheet where less than `room` is left under it."""
        if self._left < room:
            self._open()
        self._left -= 0.14
        self._write(MARGIN_IN, text, size=11, weight="bold")
        self._left -= 0.08

    def paragraph(self, text: str, *, size: float = 9, weight: str = "normal", color: Any = _INK) -> None:
        """Wrapped text."""
        for line in _wrapped(text, _USABLE_IN, size, weight):
            self._write(MARGIN_IN, line, size=size, weight=weight, color=color)
        self._left -= 0.04

    def table(self, table: TextTable, widths: Sequence[float] = (), size: float = 9) -> None:
        """Rows with wrapped cells: two columns as name and value, more as columns of figures.

        Args:
            table: its rows; one of which only the first cell says something is a heading within it.
            widths: of the columns in inches; by default a broad first and even others.
            size: of the text in points.
        """
        columns = len(table.header)
        first = 1.6 if columns == 2 else 2.4
        widths = widths or [first, *([(_USABLE_IN - first) / (columns - 1)] * (columns - 1))]
        named = columns == 2 and not any(table.header)
        if any(table.header):
            self._row(table.header, widths, size, [(_MUTED, "bold")] * columns)
        for row in table.rows:
            if row[0] and not any(row[1:]):
                self._left -= 0.05
                self._row(row[:1], [_USABLE_IN], size, [(_INK, "bold")])
            else:
                styles = [(_MUTED if named and not column else _INK, "normal") for column in range(columns)]
                self._row(row, widths, size, styles)
        self._left -= 0.06

    def pairs(self, table: TextTable) -> None:
        """Names and values in two columns beside each other, filled downwards."""
        half = -(-len(table.rows) // 2)
        left, right = table.rows[:half], (*table.rows[half:], ("", ""))
        styles = [(_MUTED, "normal"), (_INK, "normal")] * 2
        for one, other in zip(left, right, strict=False):
            self._row((*one, *other), _PAIRS_IN, 8, styles)
        self._left -= 0.06

    def legend(self, entries: Sequence[tuple[str, Any]]) -> None:
        """Coloured squares with what they stand for, on one line."""
        top, left = self._left, MARGIN_IN
        for name, color in entries:
            self._left = top
            self._write(left, "■", size=9, color=color)
            self._left = top
            self._write(left + 0.15, name, size=8, color=_MUTED)
            left += 0.35 + _width_in(name, 8, "normal")
        self._left -= 0.05

    def picture(self, images: KeyImages, lesion: Any, height: float) -> None:
        """The key images of a lesion over the whole width."""
        if self._left < height:
            self._open()
        bottom = (MARGIN_IN + self._left - height) / HEIGHT_IN
        width = WIDTH_IN - 2 * MARGIN_IN
        frame = (MARGIN_IN / WIDTH_IN, bottom, width / WIDTH_IN, height / HEIGHT_IN)
        images.draw(self._figure, lesion, frame)
        self._left -= height + 0.08

    def close(self) -> None:
        """Number the sheets and write them."""
        for number, figure in enumerate(self._figures, 1):
            said = f"{RESEARCH_USE}   Page {number} of {len(self._figures)}"
            figure.text(0.5, 0.35 / HEIGHT_IN, said, fontsize=8, color=_MUTED, ha="center", parse_math=False)
            self._pages.savefig(figure)

    def _row(
        self, cells: Sequence[str], widths: Sequence[float], size: float, styles: Sequence[tuple[Any, str]]
    ) -> None:
        """One row; `styles` are colour and weight of each cell."""
        from matplotlib.lines import Line2D

        wrapped = [
            _wrapped(cell, width - 0.08, size, weight)
            for cell, width, (_, weight) in zip(cells, widths, styles, strict=True)
        ]
        step = _LINE_IN * size / 9
        height = max(len(each) for each in wrapped) * step
        if self._left < height:
            self._open()
        top, left = self._left, MARGIN_IN
        for lines, width, (color, weight) in zip(wrapped, widths, styles, strict=True):
            for number, line in enumerate(lines):
                self._left = top - number * step
                self._write(left, line, size=size, color=color, weight=weight)
            left += width
        self._left = top - height
        y = (MARGIN_IN + self._left + 0.03) / HEIGHT_IN
        edge = (MARGIN_IN / WIDTH_IN, 1 - MARGIN_IN / WIDTH_IN)
        self._figure.add_artist(Line2D(edge, (y, y), color=_LINE, linewidth=0.5))

    def _write(self, left: float, text: str, *, size: float = 9, color: Any = _INK, weight: str = "normal") -> None:
        if self._left < _LINE_IN:
            self._open()
        at = (left / WIDTH_IN, (MARGIN_IN + self._left) / HEIGHT_IN)
        self._figure.text(*at, text, fontsize=size, color=color, weight=weight, va="top", parse_math=False)
        self._left -= _LINE_IN * size / 9

    def _open(self) -> None:
        """Begin a sheet."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), facecolor="white")
        FigureCanvasAgg(self._figure)
        self._figures.append(self._figure)
        self._left = HEIGHT_IN - 2 * MARGIN_IN
        created = self._findings.created.strftime("%Y-%m-%d %H:%M UTC")
        if len(self._figures) == 1:
            self._write(MARGIN_IN, self._findings.study_id, size=16, weight="bold")
            self._left -= 0.05
            examination = content.examination(self._findings)
            about = f"MTMed3D findings, {created}. {examination}".strip()
            self._write(MARGIN_IN, about, color=_MUTED)
            self._write(MARGIN_IN, RESEARCH_USE, color=_ACCENT, weight="bold")
        else:
            self._write(MARGIN_IN, f"{self._findings.study_id}   MTMed3D findings, {created}", size=8, color=_MUTED)
