"""The command line ``mtmed3d``: which commands there are, and how each refusal becomes a message and an exit code.

Importing this module, and printing any help, loads neither torch nor numpy: a command imports its work when it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TextIO

from MTMed3DCore import __version__
from MTMed3DCore.allocator import share_one_heap
from MTMed3DCore.commands import (
    analyze,
    benchmark,
    datalist,
    demo,
    doctor,
    evaluate,
    federate,
    model,
    prepare,
    series,
    train,
)
from MTMed3DCore.errors import Cancelled, MTMed3DError, WrongUse
from MTMed3DCore.process import open_standard_streams, terminated_as_interrupted
from MTMed3DCore.worker.failures import foreseen

COMMANDS = (analyze, demo, series, prepare, datalist, train, evaluate, benchmark, federate, model, doctor)
"""Modules with ``add_parser(subparsers)``; the order is that of the help."""
EPILOG = """\
examples:
  mtmed3d demo                                  analyse a synthetic study; nothing to download
  mtmed3d analyze case/ -o results/             one study: a folder with T1, T1ce, T2 and FLAIR
  mtmed3d analyze list.json -o results/         a cohort, one subfolder a study; goes on where it stopped
  mtmed3d series study/                         what a folder of DICOM files holds
  mtmed3d prepare study/ -o prepared/           register a study and strip its skull
  mtmed3d model list                            the models on this machine
  mtmed3d doctor                                what this machine can do

exit codes: 0 done, 2 wrong use, 3 input refused, 4 model refused, 5 out of resources, 130 cancelled.
For research use only. Not a medical device; not for diagnosis or treatment.
"""


class _Parser(argparse.ArgumentParser):
    """Raises wrong use as `WrongUse`, so that it is reported like every other refusal."""

    def error(self, message: str) -> NoReturn:
        raise WrongUse("usage", f"{message[:1].upper()}{message[1:]}.", f"See `{self.prog} --help`.")


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = _Parser(
        prog="mtmed3d",
        description="Finds, outlines and grades brain tumours on four MR sequences. For research use only.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mtmed3d {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 done, 2 wrong use, 3 input refused, 4 model refused, 5 out of resources, 130 cancelled.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    open_standard_streams()
    share_one_heap()
    options = argparse.Namespace()
    try:
        with terminated_as_interrupted(), _heard_or_not(sys.stdout):  # gone, as after `| head`
            options = build_parser().parse_args(arguments)
            code = int(options.run(options))
            sys.stdout.flush()
            return code
        return 0
    except KeyboardInterrupt:
        return report(Cancelled(), as_json)
    except MTMed3DError as error:
        return report(error, as_json)
    except SystemExit as stop:  # argparse ends --help and --version this way
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        known = foreseen(error, getattr(options, "device", "cpu"))
        if known is None:
            raise  # a fault of the software, which its traceback describes best
        return report(known, as_json)


def report(error: MTMed3DError, as_json: bool) -> int:
    """Say a refusal on stderr, and with `as_json` on stdout for a machine; returns its exit code."""
    with _heard_or_not(sys.stderr):
        print(f"error: {error.text}", file=sys.stderr)
        if error.remedy:
            print(f"remedy: {error.remedy}", file=sys.stderr)
    with _heard_or_not(sys.stdout):
        if as_json:
            print(json.dumps({"error": {"code": error.code, "text": error.text, "remedy": error.remedy}}), flush=True)
    return error.exit_code


@contextmanager
def _heard_or_not(stream: TextIO) -> Iterator[None]:
    """Send to nowhere what is left to say to whoever has gone; Python would complain when it flushes at the end."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
