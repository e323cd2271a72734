"""``mtmed3d benchmark``: what the networks cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from MTMed3DCore.commands.console import Subparsers, add_json_option, new_parser, print_table, progress_bar
from MTMed3DCore.whole_file import write_whole

DESCRIPTION = """\
Sets one multi-task network beside three single-task ones: parameters, floating-point operations (two for a multiply and
an add), time of a pass (median after warm-up, device synchronised), peak of memory (each network in a process of its
own), and the activations that a training step keeps.
"""
EPILOG = """\
examples:
  mtmed3d benchmark tasks
  mtmed3d benchmark tasks --feature-size 12 --patch 64 -o benchmark
  mtmed3d benchmark tasks --device cuda --repeats 20
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(subparsers, "benchmark", "measure what the networks cost", description="Measures networks.")
    kinds = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    tasks = new_parser(
        kinds, "tasks", "one multi-task network against three single-task ones", description=DESCRIPTION, epilog=EPILOG
    )
    tasks.add_argument("--feature-size", type=int, default=48, choices=(12, 24, 48), help="width (default: 48)")
    tasks.add_argument("--patch", type=int, default=96, metavar="N", help="side of the input in voxels (default: 96)")
    tasks.add_argument("--preset", default="mtmed3d", choices=("mtmed3d", "published"), help="default: mtmed3d")
    tasks.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    tasks.add_argument("--repeats", type=int, default=5, metavar="N", help="timed passes (default: 5)")
    tasks.add_argument("--warm-up", type=int, default=1, metavar="N", help="passes before them (default: 1)")
    tasks.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="write tasks.json and tasks.md there")
    add_json_option(tasks)
    tasks.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    tasks.set_defaults(run=run_tasks)


def run_tasks(options: argparse.Namespace) -> int:
    """Measure, print the table, write the files."""
    from MTMed3DCore.efficiency import HEADINGS, as_markdown, compare_tasks, table_rows
    from MTMed3DCore.errors import WrongUse
    from MTMed3DCore.inference import choose_device
    from MTMed3DCore.inference.settings import GRANULE

    if options.patch < 2 * GRANULE or options.patch % GRANULE:
        text = f"A patch of {options.patch} voxels does not fit the network."
        raise WrongUse("patch", text, f"Give a multiple of {GRANULE} from {2 * GRANULE} on.")
    if options.repeats < 1 or options.warm_up < 0:
        raise WrongUse("repeats", f"{options.repeats} passes after {options.warm_up} are none to measure.")
    device = str(choose_device(options.device))
    with progress_bar(f"Measuring on {device}", not (options.quiet or options.json)) as progress:
        result = compare_tasks(
            preset=options.preset,
            feature_size=options.feature_size,
            patch=options.patch,
            device=device,
            warm_up=options.warm_up,
            repeats=options.repeats,
            progress=progress,
        )
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_whole(options.output / "tasks.json", json.dumps(result, indent=1) + "\n")
        write_whole(options.output / "tasks.md", as_markdown(result))
    if options.json:
        print(json.dumps(result))
    else:
        title = f"{options.feature_size} features, {options.patch} voxels, {device}"
        print_table(title, HEADINGS, table_rows(result))
    return 0
