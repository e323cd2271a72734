"""What the commands show: progress on stderr, tables on stdout, and the options that several of them have."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.progress import Progress, silent

STAGES = {
    "read": "Reading",
    "prepare": "Preparing",
    "infer": "Analysing",
    "write": "Writing",
    "train": "Training",
    "evaluate": "Evaluating",
    "download": "Downloading",
    "unpack": "Unpacking",
    "verify": "Checking",
}


class Subparsers(Protocol):
    """What ``ArgumentParser.add_subparsers`` returns; its class is private to argparse."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser: ...


def new_parser(subparsers: Subparsers, name: str, summary: str, **options: Any) -> argparse.ArgumentParser:
    """A command's parser whose epilog keeps its line breaks."""
    formatter = argparse.RawDescriptionHelpFormatter
    return subparsers.add_parser(name, help=summary, formatter_class=formatter, **options)


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """``--model``, ``--device``, ``--precision``."""
    group = parser.add_argument_group("model and computer")
    group.add_argument("--model", default="starter", help="name of a model, or a bundle's folder (default: starter)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"), help="default: auto")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--overwrite``, ``--json``, ``--quiet``."""
    parser.add_argument("--overwrite", action="store_true", help="replace results that lie in the output folder")
    add_json_option(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars")


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, for programs")


@contextmanager
def progress_bar(title: str, shown: bool) -> Iterator[Progress]:
    """A bar on stderr with one row a stage; nothing where `shown` is false or stderr is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.fields[stage]:<10}"),
        BarColumn(30),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        bars.console.print(title, markup=False)
        rows: dict[str, Any] = {}

        def tell(stage: str, fraction: float, text: str) -> None:
            if stage not in rows:
                rows[stage] = bars.add_task("", total=1.0, stage=STAGES.get(stage, stage))
            bars.update(rows[stage], completed=fraction, description=text.replace("[", r"\["))

        yield tell


def print_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] = ()
) -> None:
    """A table on stdout: the first column and those named by `left` to the left, the others to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) or None, title_justify="left", box=SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index and heading not in left else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    # Away from a terminal rich assumes 80 columns and would fold paths; a log or a pipe has no width.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def read_settings(path: Path) -> dict[str, Any]:
    """Training settings from a JSON file.

    Raises:
        InputRefused: no such file, or no JSON.
    """
    try:
        plain: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = f"{path} cannot be read: {error}."
        raise InputRefused("settings-damaged", text, "Give a JSON file with training settings.") from error
    return plain


def print_trained(listed: Path, run: Path, bundle: Path, fold: int | None) -> None:
    """What a finished run left behind, and how to measure it on what it was not trained on."""
    held_out = "" if fold is None else f" --fold {fold}"
    print(f"Trained. The model lies in {bundle}; the run's course in {run / 'curves.png'}.")
    print(f"Measure it with: mtmed3d evaluate {listed} --model {bundle}{held_out} -o REPORT")
