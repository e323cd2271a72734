"""Mutation fuzzer: ``python -m Testing.fuzz.mutate TARGET --executions N --seed S --crashes FOLDER``.

Reads changed copies of a valid file as often as asked. A reader may return or refuse (`MTMed3DError`); anything else is
a crash, written minimised to a folder, one for each place of the code. Where native code may end the process, the
content that it was reading lies in ``FOLDER/TARGET-last``; nothing is started again by itself: run it with another
seed. ``all`` runs every target in turn. The exit code is 1 where anything crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from MTMed3DCore.errors import MTMed3DError
from Testing.fuzz.mutations import minimise, mutate
from Testing.fuzz.targets import NAMES, Target, make


@dataclass
class Outcome:
    """Of a run.

    Args:
        executions: contents that were read.
        refused: of them, those that were refused with a reason.
        crashes: minimised content by the kind of error and its place in the code.
        seconds: for all executions, without minimising.
    """

    executions: int = 0
    refused: int = 0
    crashes: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0


def fuzz(target: Target, executions: int, seed: int, folder: Path, last: Path | None = None) -> Outcome:
    """Run a target; `folder` is its working place, `last` takes the content that is being read."""
    random = np.random.default_rng(seed)
    outcome = Outcome()
    for number in range(executions):
        original = target.seeds[number % len(target.seeds)]
        content = mutate(original, random, target.head)
        if last is not None:
            last.write_bytes(content)
        started = time.perf_counter()
        where = _execute(target, content, folder)
        outcome.seconds += time.perf_counter() - started
        outcome.executions += 1
        outcome.refused += where == ""
        if where and where not in outcome.crashes:
            smallest = minimise(original, content, lambda part, wanted=where: _execute(target, part, folder) == wanted)
            outcome.crashes[where] = smallest
    return outcome


def _execute(target: Target, content: bytes, folder: Path) -> str | None:
    """None where it was read, empty where it was refused, else what crashed and where."""
    try:
        target.run(content, folder)
    except MTMed3DError:
        return ""
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "MTMed3DCore" in frame.filename] or list(frames)
        return f"{type(error).__name__} {Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=(*NAMES, "all"))
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crashes", type=Path, default=Path("crashes"))
    options = parser.parse_args(arguments)
    faulthandler.enable()
    crashed = False
    for name in NAMES if options.target == "all" else (options.target,):
        with tempfile.TemporaryDirectory() as place, _Silence():
            target = make(name, Path(place))
            folder = Path(place) / "work"
            folder.mkdir()
            options.crashes.mkdir(parents=True, exist_ok=True)
            last = options.crashes / f"{name}-last" if target.native else None
            outcome = fuzz(target, options.executions, options.seed, folder, last)
        if last is not None:
            last.unlink(missing_ok=True)
        for number, (what, content) in enumerate(outcome.crashes.items()):
            (options.crashes / f"{name}-{options.seed}-{number}").write_bytes(content)
            print(f"  crash {number}: {what}")
        speed = outcome.executions / max(outcome.seconds, 1e-9)
        print(
            f"{name}: {outcome.executions} executions, {speed:.0f}/s, {outcome.refused} refused, "
            f"{len(outcome.crashes)} crashes",
            flush=True,
        )
        crashed |= bool(outcome.crashes)
    return int(crashed)


class _Silence(contextlib.AbstractContextManager[None]):
    """Keeps what native readers print on standard error out of the way."""

    def __enter__(self) -> None:
        self._kept = os.dup(2)
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        faulthandler.enable(os.fdopen(os.dup(self._kept), "w"))
        os.dup2(self._nowhere, 2)

    def __exit__(self, *error: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)
        os.close(self._nowhere)


if __name__ == "__main__":
    sys.exit(main())
