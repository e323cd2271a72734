"""Runs of the software as processes of their own, held at every step so that a fault meets them exactly there.

A process is forked from one that has loaded the libraries, because loading takes longer than a small analysis. What
runs in it is the command line or the worker as they are, but for two things: a listener to their progress waits at
every step until it is let on, and in place of the preview and the PDF, which take longest, as many empty bytes are
written. Runs that only show that a place can be written to again get the network's answer of the first run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MTMed3DCore import cli, exports, inference
from MTMed3DCore.commands import analyze
from MTMed3DCore.exports.atomic import edited_files, read_manifest
from MTMed3DCore.exports.workplace import PARTIAL
from Testing.corpus.model import write_model
from Testing.corpus.plain import write_plain

PATIENCE_S = 300.0
PICTURE_BYTES = 160 * 1024
"""As many as a preview has."""
Step = tuple[str, str]
"""Stage and text of a step; the stage ``rename`` is a move into the output folder, by the names of both."""


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        status: exit code, or the negative number of the signal.
        code: of the refusal, from its JSON; empty without one.
        text: of the refusal.
        remedy: of the refusal.
        log: what it printed on standard error.
    """

    status: int
    code: str = ""
    text: str = ""
    remedy: str = ""
    log: str = ""

    def __str__(self) -> str:
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        return f"exit {self.status} {self.code}".strip()


@dataclass
class Site:
    """Where the runs of one fault work.

    Args:
        root: holds the study and the folder of temporary files.
        model: a bundle.
        out: the output folder.
    """

    root: Path
    model: Path
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.out = self.root / "results" / "out"
        self.out.parent.mkdir()
        (self.root / "tmp").mkdir()
        write_plain(self.study)

    @property
    def study(self) -> Path:
        """Folder of the four sequences."""
        return self.root / "study"

    def arguments(self, *more: str) -> list[str]:
        """Of the command line."""
        place = [str(self.study), "-o", str(self.out), "--model", str(self.model), "--device", "cpu"]
        return ["analyze", *place, "--json", *more]

    def left(self) -> list[str]:
        """Temporary names beside the results, in them and in the folder of temporary files."""
        beside = [path for path in self.root.rglob("*") if path.name.startswith(PARTIAL) or ".partial" in path.name]
        top = [path for path in beside if not any(parent in beside for parent in path.parents)]
        return sorted(path.relative_to(self.root).as_posix() for path in (*top, *(self.root / "tmp").iterdir()))

    def results(self) -> str:
        """``complete``, ``none``, files without the one that marks a result, or ``HALF``: what is not whole."""
        visible = [path for path in self.out.rglob("*") if path.is_file() and PARTIAL not in path.as_posix()]
        if not visible:
            return "none"
        names = read_manifest(self.out)
        missing = [name for name in ("findings.json", *names) if not (self.out / name).is_file()]
        if "findings.json" in missing or not names:
            return f"not to be taken for a result: {len(visible)} files without findings.json"
        if missing:
            return f"HALF: without {', '.join(missing[:3])}"
        changed = edited_files(self.out)
        return f"HALF: {changed[0]} is not as written" if changed else "complete"


@contextlib.contextmanager
def sites() -> Iterator[Callable[[], Site]]:
    """Makes sites with one model, and removes them."""
    with tempfile.TemporaryDirectory() as place, _no_pictures():
        model = write_model(Path(place) / "model").folder
        _first_run(Site(Path(place) / "first", model))
        made: list[Site] = []

        def make() -> Site:
            made.append(Site(Path(place) / f"{len(made)}", model))
            return made[-1]

        yield make


def _first_run(site: Site) -> None:
    """Loads every library, and keeps the findings."""
    compute = inference.analyze

    def keeping(*arguments: Any, **options: Any) -> Any:
        _kept[:] = [compute(*arguments, **options)]
        return _kept[0]

    inference.analyze = keeping
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert cli.main(site.arguments()) == 0
    finally:
        inference.analyze = compute


_kept: list[Any] = []


@contextlib.contextmanager
def _no_pictures() -> Iterator[None]:
    kept = exports.write_preview, exports.write_report_pdf
    exports.write_preview = exports.write_report_pdf = lambda findings, path: path.write_bytes(bytes(PICTURE_BYTES))
    try:
        yield
    finally:
        exports.write_preview, exports.write_report_pdf = kept


class Run:
    """A process of the software.

    Args:
        site: where it works.
        call: what it does; its return value is the exit code.
        prepare: called in the process before.
        stderr: descriptor of its log; a file where None, closed where -1; `stdout` in the same way.
        stdin: descriptor of its input; none where None.
        gated: whether it waits at every step.
    """

    def __init__(
        self,
        site: Site,
        call: Callable[[], int],
        prepare: Callable[[], None] = lambda: None,
        stderr: int | None = None,
        stdout: int | None = None,
        stdin: int | None = None,
        gated: bool = True,
    ) -> None:
        self._output, self._log = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        told, tell = os.pipe()
        listen, let = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(told)
                os.close(let)
                if stdin is not None:
                    os.dup2(stdin, 0)
                else:
                    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
                streams = (self._output.fileno() if stdout is None else stdout,
                           self._log.fileno() if stderr is None else stderr)  # fmt: skip
                _become(site, *streams, *((tell, listen) if gated else (None, None)))
                prepare()
                code = call()
                sys.stdout.flush()
            except BaseException:  # as the interpreter does
                with contextlib.suppress(OSError, ValueError):
                    traceback.print_exc()
                code = 1
            finally:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.flush()
                os._exit(code)
        os.close(tell)
        os.close(listen)
        self._told, self._let = os.fdopen(told, encoding="utf-8"), let
        self._ended: int | None = None

    def steps(self) -> Iterator[Step]:
        """Every step; the process goes on when the next one is asked for."""
        for line in self._told:
            stage, _, text = line.strip().partition(" ")
            yield stage, text
            with contextlib.suppress(BrokenPipeError):
                os.write(self._let, b".")

    def until(self, wanted: Callable[[Step], bool]) -> Step | None:
        """Let it on up to a step, where it waits; None where it ended before."""
        return next((step for step in self.steps() if wanted(step)), None)

    def go_on(self) -> None:
        """Let it run freely from the step where it waits."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._let, b"!")

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def end(self) -> Ended:
        """Let it run to its end, or wait for it."""
        self.go_on()
        deadline = time.monotonic() + PATIENCE_S
        while self._ended is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._ended = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            else:
                time.sleep(0.01)
        self._told.close()
        os.close(self._let)
        log, output = (self._text(stream) for stream in (self._log, self._output))
        error: Mapping[str, Any] = {}
        with contextlib.suppress(ValueError):
            error = json.loads(output).get("error") or {}
        return Ended(self._ended, error.get("code", ""), error.get("text", ""), error.get("remedy", ""), log)

    @staticmethod
    def _text(stream: Any) -> str:
        stream.seek(0)
        with stream:
            return str(stream.read().decode("utf-8", errors="replace"))


def run_cli(site: Site, *more: str, **options: Any) -> Run:
    """`mtmed3d analyze` of the site's study."""
    return Run(site, lambda: cli.main(site.arguments(*more)), **options)


def run_again(site: Site, *more: str) -> Ended:
    """`mtmed3d analyze` of the site's study with the network's answer of the first run, from beginning to end."""

    def answer() -> None:
        inference.analyze = lambda *arguments, **options: _kept[0]

    return run_cli(site, *more, gated=False, prepare=answer).end()


def _become(site: Site, stdout: int, stderr: int, tell: int | None, listen: int | None) -> None:
    """In the new process: its streams, its folder of temporary files, and the listener to its progress."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in ((1, stdout), (2, stderr)):
        if descriptor >= 0:
            os.dup2(descriptor, number)
        else:
            os.close(number)
    sys.stdout, sys.stderr = (
        os.fdopen(n, "w", encoding="utf-8", closefd=False) if d >= 0 else None  # type: ignore[assignment]
        for n, d in ((1, stdout), (2, stderr))
    )
    os.environ["TMPDIR"] = tempfile.tempdir = str(site.root / "tmp")
    if tell is None or listen is None:
        return
    free = False

    def step(stage: str, text: str) -> None:
        nonlocal free
        if not free:
            os.write(tell, f"{stage} {text}\n".encode())
            free = os.read(listen, 1) != b"."

    @contextlib.contextmanager
    def progress_bar(title: str, shown: bool) -> Iterator[Callable[[str, float, str], None]]:
        yield lambda stage, fraction, text: step(stage, text)

    analyze.progress_bar = progress_bar  # type: ignore[assignment]
    rename = Path.rename

    def gated(self: Path, target: Path) -> Path:
        if PARTIAL in f"{self} {target}":
            step("rename", f"{self.name} to {'the workplace' if PARTIAL in str(target) else 'its place'}")
        return rename(self, target)

    Path.rename = gated  # type: ignore[assignment,method-assign]
