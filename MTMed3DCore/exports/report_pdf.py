"""``report.pdf``: the report on A4 pages, for archives and for encapsulation in DICOM.

Drawn with matplotlib, which draws the key images anyway: text stays text, fonts are embedded, and no further library
has to be installed into 3D Slicer.
"""

from __future__ import annotations

import textwrap
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
_CHARACTERS_PER_INCH = 13.2  # of 9 point text, on the safe side


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
            images = KeyImages.of(findings)
            for lesion in findings.lesions[:MAX_LESIONS]:
                measured = lesion.rano is not None
                table = content.lesion_table(lesion)
                sheet.heading(content.lesion_title(lesion), room=3.0 + len(table.rows) * _LINE_IN)
                sheet.picture(images, lesion, 1.75 if measured else 2.3)
                sheet.table(table)
            sheet.heading("Preparation")
            preparation = content.preparation_table(findings)
            sheet.table(preparation) if preparation else sheet.paragraph("Not recorded.")
            sheet.heading("Model")
            sheet.table(content.model_table(findings))
            sheet.heading("Provenance")
            sheet.table(content.provenance_table(findings))
            sheet.close()


def _summary(sheet: _Sheets, findings: Findings) -> None:
    sheet.heading("Grade")
    grade = findings.grade
    if grade is None:
        sheet.paragraph("No grade: no tumour was found, or the model does not grade.")
    else:
        sheet.paragraph(f"{grade.label}: probability of high grade {100 * grade.probability_hgg:.0f} %.", weight="bold")
        sheet.paragraph(f"{content.GRADE_NOTE} {content.CALIBRATION_NOTE}", color=_MUTED)
    sheet.heading("Warnings")
    for notice in findings.warnings:
        sheet.paragraph(f"• {notice.text} ({notice.code})")
    if not findings.warnings:
        sheet.paragraph("None.")
    sheet.heading("Volumes in the whole study")
    sheet.table(content.volume_table(findings))
    sheet.heading("Lesions")
    if not findings.lesions:
        sheet.paragraph("No lesion found.")
    else:
        sheet.paragraph(content.rano_sentence(findings))
        sheet.paragraph(content.RANO_NOTE, color=_MUTED)
        for region in REGIONS:
            sheet.paragraph(f"■ {region.name}", color=region.rgb)
    compared = content.comparison_table(findings)
    if compared is not None:
        sheet.heading("Since the prior study")
        sheet.paragraph(content.comparison_sentence(findings))
        sheet.table(compared)
        sheet.paragraph(content.COMPARISON_NOTE, color=_MUTED)


class _Sheets:
    """Sheets filled from top to bottom; lengths in inches.

    Args:
        pages: the open file.
        findings: for title and footer.
    """

    def __init__(self, pages: PdfPages, findings: Findings) -> None:
        self._pages, self._findings = pages, findings
        self._number = 0
        self._figure: Figure
        self._left: float
        self._open()

    def heading(self, text: str, room: float = 0.8) -> None:
        """A heading, on a new sheet where less than `room` is left under it."""
        if self._left < room:
            self._turn()
        self._left -= 0.14
        self._write(MARGIN_IN, text, size=11, weight="bold")
        self._left -= 0.08

    def paragraph(self, text: str, **style: Any) -> None:
        """Wrapped text."""
        for line in textwrap.wrap(text, int((WIDTH_IN - 2 * MARGIN_IN) * _CHARACTERS_PER_INCH)) or [""]:
            self._write(MARGIN_IN, line, **style)
        self._left -= 0.04

    def table(self, table: TextTable) -> None:
        """Rows with wrapped cells: two columns as name and value, more as even columns of figures."""
        usable = WIDTH_IN - 2 * MARGIN_IN
        columns = len(table.header)
        first = 2.1 if columns == 2 else 2.4
        widths = [first, *([(usable - first) / (columns - 1)] * (columns - 1))]
        if any(table.header):
            self._row(table.header, widths, color=_MUTED, weight="bold")
        for row in table.rows:
            self._row(row, widths)
        self._left -= 0.06

    def picture(self, images: KeyImages, lesion: Any, height: float) -> None:
        """The key images of a lesion over the whole width."""
        if self._left < height:
            self._turn()
        bottom = (MARGIN_IN + self._left - height) / HEIGHT_IN
        width = WIDTH_IN - 2 * MARGIN_IN
        frame = (MARGIN_IN / WIDTH_IN, bottom, width / WIDTH_IN, height / HEIGHT_IN)
        images.draw(self._figure, lesion, frame)
        self._left -= height + 0.08

    def close(self) -> None:
        """Finish the sheet."""
        self._pages.savefig(self._figure)

    def _row(self, cells: tuple[str, ...], widths: list[float], **style: Any) -> None:
        from matplotlib.lines import Line2D

        wrapped = [
            textwrap.wrap(cell, max(6, int(width * _CHARACTERS_PER_INCH)), break_long_words=True) or [""]
            for cell, width in zip(cells, widths, strict=True)
        ]
        lines = max(len(each) for each in wrapped)
        if self._left < lines * _LINE_IN:
            self._turn()
        top, left = self._left, MARGIN_IN
        for column, (each, width) in enumerate(zip(wrapped, widths, strict=True)):
            self._left = top
            for line in each:
                color = style.get("color", _MUTED if column == 0 and len(widths) == 2 else _INK)
                self._write(left, line, **{**style, "color": color})
            left += width
        self._left = top - lines * _LINE_IN
        y = (MARGIN_IN + self._left + 0.03) / HEIGHT_IN
        edge = (MARGIN_IN / WIDTH_IN, 1 - MARGIN_IN / WIDTH_IN)
        self._figure.add_artist(Line2D(edge, (y, y), color=_LINE, linewidth=0.5))

    def _write(self, left: float, text: str, *, size: float = 9, color: Any = _INK, weight: str = "normal") -> None:
        if self._left < _LINE_IN:
            self._turn()
        at = (left / WIDTH_IN, (MARGIN_IN + self._left) / HEIGHT_IN)
        self._figure.text(*at, text, fontsize=size, color=color, weight=weight, va="top", parse_math=False)
        self._left -= _LINE_IN * max(1.0, size / 9)

    def _turn(self) -> None:
        self.close()
        self._open()

    def _open(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._number += 1
        self._figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), facecolor="white")
        FigureCanvasAgg(self._figure)
        self._left = HEIGHT_IN - 2 * MARGIN_IN
        said = f"{RESEARCH_USE}   Page {self._number}"
        self._figure.text(0.5, 0.35 / HEIGHT_IN, said, fontsize=8, color=_MUTED, ha="center", parse_math=False)
        created = self._findings.created.strftime("%Y-%m-%d %H:%M UTC")
        if self._number == 1:
            self._write(MARGIN_IN, self._findings.study_id, size=16, weight="bold")
            self._left -= 0.05
            self._write(MARGIN_IN, f"MTMed3D findings, {created}", color=_MUTED)
            self._write(MARGIN_IN, RESEARCH_USE, color=_ACCENT, weight="bold")
        else:
            self._write(MARGIN_IN, f"{self._findings.study_id}   MTMed3D findings, {created}", size=8, color=_MUTED)
