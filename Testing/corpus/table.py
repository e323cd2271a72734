"""Writes the table of the corpus as Markdown: every case, what is right, and what came through each entrance.

``python -m Testing.corpus.table [FILE] [NAME ...]``; with names, only the cases whose name holds one of them. Exit code
1 where a case came out wrong. The panel's entrance takes 3D Slicer's libraries (extra `slicer`), and is left out where
they are missing.

Through the panel a fault of a file may be gone before anything of ours sees it, because 3D Slicer's reader makes
something else of it; such a case says ``as 3D Slicer reads it``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from Testing.corpus.case import Case, four_files
from Testing.corpus.cases import ALL
from Testing.corpus.model import write_model
from Testing.corpus.panel import READER, Panel, missing
from Testing.corpus.plain import write_plain
from Testing.corpus.runner import Got, Labels, Worker, canonical_labels, faults, through_cli

HEADINGS = ("subject", "case", "expected", "command line", "worker", "panel")
IN_THE_FILE = ("files and formats", "headers and geometry", "DICOM")
"""Subjects whose faults lie in files, and not in voxels or places that a scene holds."""
READ_OTHERWISE = {
    "spacing_of_zero_beside_a_whole_sform": "takes 1 mm for the spacing of zero",
    "one_voxel_that_is_no_number": "makes it 0",
    "one_infinite_voxel": "makes it 0",
    "slope_with_an_intercept_of_not_a_number": "leaves the intercept out",
}
"""What 3D Slicer's reader does with a fault elsewhere, looked at in the volumes that it makes."""
OF_THE_PANEL = "inputs"
"""Code of what the panel refuses before the worker is asked."""


def main(arguments: list[str]) -> int:
    """Run every case whose name holds one of the further arguments, or every case."""
    file = Path(arguments[0]) if arguments else None
    chosen = [case for case in ALL if not arguments[1:] or any(part in case.name for part in arguments[1:])]
    with tempfile.TemporaryDirectory() as place:
        rows, wrong = table(Path(place), chosen)
    text = "\n".join("| " + " | ".join(row) + " |" for row in [HEADINGS, ("---",) * len(HEADINGS), *rows])
    text += f"\n\n{len(rows)} cases, {wrong} wrong.\n"
    if file is None:
        print(text)
    else:
        file.write_text(text, encoding="utf-8")
    return int(wrong > 0)


def table(place: Path, cases: list[Case]) -> tuple[list[tuple[str, ...]], int]:
    """The rows, and how many cases came out wrong."""
    model = write_model(place / "model").folder
    plain = write_plain(place / "plain")
    through_cli(four_files(plain), place / "plain-result", model)
    labels = canonical_labels(place / "plain-result")
    worker = Worker(model)
    reason = missing()
    panel = None if reason else Panel(model)
    rows, wrong = [], 0
    for number, case in enumerate(cases):
        given = case.make(place / f"{number}" / "case", plain)
        by_cli = through_cli(given, place / f"{number}" / "cli", model)
        by_worker = worker(given, place / f"{number}" / "worker")
        cells = [_cell(case, got, labels) for got in (by_cli, by_worker)]
        cells.append(reason if panel is None else _panel_cell(case, panel(given), labels))
        wrong += any("WRONG" in cell for cell in cells)
        rows.append((case.subject, case.name.replace("_", " "), str(case.expected), *cells))
        print(f"{number + 1}/{len(cases)} {case.name}: {', '.join(cells)}", file=sys.stderr)
    worker.close()
    if panel is not None:
        panel.close()
    return rows, wrong


def _cell(case: Case, got: Got | None, labels: Labels) -> str:
    if got is None:
        return "takes files only"
    found = faults(case.expected, got, labels)
    return f"WRONG: {got}: {'; '.join(found)}" if found else str(got)


def _panel_cell(case: Case, got: Got | str, labels: Labels) -> str:
    if isinstance(got, str):
        return got
    if got.kind == "refused" and READER in got.codes:
        return "refused by 3D Slicer's reader"
    if got.kind == "refused" and OF_THE_PANEL in got.codes:
        return "refused by the panel itself"
    found = faults(case.expected, got, labels)
    if found and got.kind == "refused" and case.expected.kind == "refused":
        return f"{got} (another reason)"
    if found and case.name in READ_OTHERWISE:
        return f"{got}: 3D Slicer's reader {READ_OTHERWISE[case.name]}"
    if found and got.kind == "analysed" and case.subject in IN_THE_FILE:
        return f"{got}, as 3D Slicer reads it"
    return _cell(case, got, labels)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main(sys.argv[1:]))
