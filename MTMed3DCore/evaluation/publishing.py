"""Everything that an evaluation leaves in its folder: JSON, table, figures and report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from MTMed3DCore.datalist.case import Case
from MTMed3DCore.errors import Cancelled, MTMed3DError
from MTMed3DCore.evaluation.document import Evaluation, cases_table
from MTMed3DCore.evaluation.figures import draw_froc, draw_regions, draw_reliability
from MTMed3DCore.evaluation.files import CASES_TABLE, FIGURES, REPORT
from MTMed3DCore.evaluation.report import by_badness, report_page
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.whole_file import write_whole


def publish(
    evaluation: Evaluation, folder: Path, cases: Iterable[Case] = (), pictured: int = 0, progress: Progress = silent
) -> None:
    """Write everything; ``evaluation.json`` comes last, so that it marks a finished evaluation.

    Args:
        evaluation: with at least one result.
        folder: to write into.
        cases: of the list, for pictures.
        pictured: number of the worst cases to draw.
        progress: told as stage ``write``.
    """
    summary = evaluation.summary
    progress("write", 0.0, "Drawing the figures")
    drawn = {
        "regions": draw_regions(evaluation.results),
        "froc": draw_froc(summary["detection"], evaluation.results),
        "reliability": draw_reliability(summary["grading"]),
    }
    pictures = {name: picture for name, picture in drawn.items() if picture is not None}
    for name, picture in pictures.items():
        write_whole(folder / FIGURES / f"{name}.png", picture)
    worst = _draw_worst(evaluation, {case.id: case for case in cases}, pictured, progress)
    progress("write", 0.9, "Writing the report")
    write_whole(folder / CASES_TABLE, cases_table(evaluation.results))
    write_whole(folder / REPORT, report_page(evaluation, pictures, worst))
    evaluation.write(folder)
    progress("write", 1.0, "Written")


def _draw_worst(
    evaluation: Evaluation, cases: Mapping[str, Case], pictured: int, progress: Progress
) -> dict[str, bytes]:
    from MTMed3DCore.evaluation.pictures import draw_case

    drawn: dict[str, bytes] = {}
    for result in by_badness(evaluation.results):
        if len(drawn) >= pictured or result.mean_dice is None:
            break
        case = cases.get(result.id)
        if case is None or case.label is None or result.analysis is None:
            continue
        progress("write", 0.2 + 0.6 * len(drawn) / pictured, f"Drawing {result.id}")
        try:
            drawn[result.id] = draw_case(case, Path(result.analysis))
        except Cancelled:
            raise
        except MTMed3DError:
            continue  # a stored row outlives its analysis; the figures do not need it, only the picture does
    return drawn
