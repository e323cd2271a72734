"""``mtmed3d doctor``: what this machine can do."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from MTMed3DCore.commands.console import Subparsers, add_json_option, new_parser

if TYPE_CHECKING:
    from MTMed3DCore.doctor import Check

DESCRIPTION = """\
Says in ten lines what this machine has and can do: Python, packages, devices, memory, cores, the starter model, disk.
Exit code 0 when everything that an analysis needs is there, otherwise that of the first thing that is not.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(subparsers, "doctor", "what this machine can do, in ten lines", description=DESCRIPTION)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the ten checks."""
    from MTMed3DCore.doctor import examine

    checks = examine()
    print(json.dumps({"checks": [vars(check) for check in checks]}, indent=2) if options.json else _text(checks))
    return next((check.exit_code for check in checks if check.exit_code), 0)


def _text(checks: list[Check]) -> str:
    lines = (f"{'ok' if not check.exit_code else 'NO'}  {check.name:<8}  {check.text}" for check in checks)
    return "\n".join(lines)
