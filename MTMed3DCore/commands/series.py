"""``mtmed3d series``: what a folder of DICOM files holds, what each series is taken for, and why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.console import Subparsers, add_json_option, new_parser, print_table, progress_bar
from MTMed3DCore.errors import InputRefused

if TYPE_CHECKING:
    from MTMed3DCore.dicom import Series

DESCRIPTION = """\
Lists the series in folders of DICOM files, at any depth: number, description, slices, size, what each is taken for and
why. The last line says whether `mtmed3d analyze FOLDER` would find its four sequences. Nothing is written; patients'
names are not shown.
"""
EPILOG = """\
examples:
  mtmed3d series study/
  mtmed3d series study/ --json
  mtmed3d analyze study/ -o results/ --series t1ce=7      when the choice is not clear, or wrong

exit codes: 0 the four sequences were found, 3 they were not, or the folder was refused.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(
        subparsers, "series", "what a folder of DICOM files holds", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of DICOM files of one patient")
    add_json_option(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; returns 0, or 3 where the four sequences are not found."""
    from MTMed3DCore.dicom import choose, scan

    with progress_bar("Reading headers", not (options.json or options.quiet)) as progress:
        found = scan(options.folders, progress)
    refusal, choice = None, None
    try:
        choice = choose(found)
    except InputRefused as error:
        refusal = error
    chosen = {id(series): name for name, series in choice.series.items()} if choice else {}
    if options.json:
        print(json.dumps(_document(found, choice, refusal), indent=2))
    else:
        headings = ("series", "description", "slices", "voxel mm", "plane", "taken for", "why")
        rows = [_row(series, chosen.get(id(series))) for series in found]
        print_table("", headings, rows, left=("description", "taken for", "why"))
        for notice in choice.notices if choice else ():
            print(f"warning: {notice.text}")
        print(f"not ready: {refusal}" if refusal else "ready: all four sequences were found (marked *)")
    return refusal.exit_code if refusal else 0


def _row(series: Series, used: str | None) -> tuple[str, ...]:
    fault = series.fault if series.verdict.sequence else None
    why = "; ".join(series.verdict.reasons)
    if fault is not None:
        why = f"cannot be used: {fault.text}"
    taken = f"{series.verdict.text}{' *' if used else ''}"
    return (series.key, series.header.description, str(len(series.frames)), _voxel(series), series.plane, taken, why)


def _voxel(series: Series) -> str:
    if not series.frames:
        return ""
    if len(series.frames) > 1 and series.fault is None:
        return " x ".join(f"{side:.2g}" for side in series.stack.grid.spacing)
    return " x ".join(f"{side:.2g}" for side in series.frames[0].spacing[::-1])


def _document(found: Any, choice: Any, refusal: InputRefused | None) -> dict[str, Any]:
    return {
        "series": [
            {
                "key": series.key,
                "series_uid": series.header.series_uid,
                "description": series.header.description,
                "slices": len(series.frames),
                "plane": series.plane,
                "sequence": series.verdict.sequence,
                "candidates": list(series.verdict.candidates),
                "set_aside": series.verdict.aside,
                "reasons": list(series.verdict.reasons),
                "fault": series.fault.text if series.verdict.sequence and series.fault else "",
            }
            for series in found
        ],
        "chosen": {name: series.key for name, series in choice.series.items()} if choice else None,
        "warnings": [{"code": notice.code, "text": notice.text} for notice in choice.notices] if choice else [],
        "error": {"code": refusal.code, "text": refusal.text, "remedy": refusal.remedy} if refusal else None,
    }
