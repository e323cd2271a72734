"""Faults of the worker process, and of processes that are started anew: little memory, another clock."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.worker.__main__ import main as serve
from Testing.faults.matrix import MIB, Act, Fault
from Testing.faults.runs import PATIENCE_S, Ended, Run, Site

ROOT = Path(__file__).resolve().parents[2]
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
Event = Mapping[str, Any]
sys.path.insert(0, str(ROOT / "MTMed3DSlicer"))  # where the panel's side of the worker lies


class Asked:
    """A worker process that was asked for one analysis.

    Args:
        site: where it works.
        options: of `Run`.
    """

    def __init__(self, site: Site, **options: Any) -> None:
        (listen, self._say), (self._hear, answer) = os.pipe(), os.pipe()
        ours = (self._say, self._hear)

        def prepare() -> None:
            for descriptor in ours:
                os.close(descriptor)

        self.run = Run(site, _serve, prepare, stdin=listen, stdout=answer, gated=False, **options)
        os.close(listen)
        os.close(answer)
        os.write(self._say, (json.dumps({"id": "1", "command": "analyze", **request(site)}) + "\n").encode())
        self._last: Event = {}

    def events(self) -> Iterator[Event]:
        """Up to the result or error, or the end of the process."""
        with os.fdopen(os.dup(self._hear), encoding="utf-8") as stream:
            for line in stream:
                self._last = json.loads(line)
                yield self._last
                if self._last["event"] in ("result", "error"):
                    return

    def until(self, wanted: Callable[[Event], bool]) -> None:
        """Wait for an event."""
        assert any(wanted(event) for event in self.events()), self._last

    def end(self) -> Ended:
        """Hear it out, close its input and wait for it."""
        for _ in self.events():
            pass
        return self.leave()

    def leave(self) -> Ended:
        """Close its input and its output, and wait for it."""
        os.close(self._say)
        os.close(self._hear)
        ended = self.run.end()
        error = self._last if self._last.get("event") == "error" else {}
        status = ended.status or int(bool(error))
        return Ended(status, error.get("code", ""), error.get("text", ""), error.get("remedy", ""), ended.log)


def _serve() -> int:
    serve()
    return 0


def request(site: Site) -> dict[str, Any]:
    """The fields of an analysis of the site's study."""
    inputs = {name: str(site.study / f"{name}.nii.gz") for name in SEQUENCES}
    place = {"output": str(site.out), "model": str(site.model), "device": "cpu"}
    return {"inputs": inputs, "overwrite": True, **place}


def stage(name: str) -> Callable[[Event], bool]:
    """Whether an event belongs to a stage."""
    return lambda event: event.get("stage") == name


def _sent(number: signal.Signals, name: str) -> Act:
    def act(site: Site) -> Ended:
        asked = Asked(site)
        asked.until(stage(name))
        asked.run.signal(number)
        return asked.end()

    return act


def _left_alone(site: Site) -> Ended:
    asked = Asked(site)
    asked.until(stage("infer"))
    return asked.leave()


def _vanished(site: Site) -> Ended:
    shutil.copytree(site.study, site.root / "elsewhere")
    asked = Asked(site)
    asked.run.signal(signal.SIGSTOP)
    (site.study / "flair.nii.gz").unlink()
    asked.run.signal(signal.SIGCONT)
    return asked.end()


def _closed_log(site: Site) -> Ended:
    return Asked(site, stderr=-1).end()


def _stuck(site: Site) -> Ended:
    """The panel's own state machine and client, with a worker that does not go on and a person who cancels."""
    from MTMed3DLib.analysis import Analysis, State
    from MTMed3DLib.worker_client import WorkerClient

    class Copies:
        def write(self, folder: Path, report: Any) -> Mapping[str, Path]:
            return {name: site.study / f"{name}.nii.gz" for name in SEQUENCES}

    class Node:
        def __getattr__(self, name: str) -> Callable[..., str]:
            return lambda *arguments: "node"

    class Scene:
        def GetNumberOfNodesByClass(self, name: str) -> int:  # noqa: N802
            return 0

    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(site.root / "tmp")}
    client = WorkerClient([sys.executable, "-m", "MTMed3DCore.worker"], variables)
    analysis = Analysis(Scene(), client, lambda nodes, mask: Copies(), lambda *arguments: None)
    deadline = time.monotonic() + PATIENCE_S

    def poll_until(done: Callable[[], bool]) -> None:
        while not done():
            assert time.monotonic() < deadline, client.log
            analysis.poll()
            time.sleep(0.01)

    analysis.start(dict.fromkeys(SEQUENCES, Node()), model=str(site.model), device="cpu")
    poll_until(lambda: analysis.text.startswith("Reading: "))
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)
    analysis.cancel()
    poll_until(lambda: analysis.state is State.IDLE)
    assert not client.running
    assert analysis.failure is not None
    analysis.close()
    return Ended(130, analysis.failure.code, analysis.failure.text, analysis.failure.remedy)


def _started_anew(site: Site, *, limit_mib: int) -> Ended:
    command = [sys.executable, "-m", "MTMed3DCore", *site.arguments()]
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (limit_mib * MIB,) * 2)
    variables = {**os.environ, "TMPDIR": str(site.root / "tmp"), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, preexec_fn=limit)
    try:
        error = json.loads(done.stdout).get("error") or {}
    except ValueError:
        error = {}
    return Ended(done.returncode, error.get("code", ""), error.get("text", ""), error.get("remedy", ""), done.stderr)


def _clock_jumps(site: Site) -> Ended:
    """The wall clock goes back by a day as reading begins, and forward by a year as the network runs."""
    from MTMed3DLib.worker_client import WorkerClient

    if FAKETIME is None:
        return Ended(70, "not-run", "libfaketime is not installed", "Install it.")
    clock = site.root / "clock"
    clock.write_text("+0")
    faked = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    faked |= {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(site.root / "tmp")}
    client = WorkerClient([sys.executable, "-m", "MTMed3DCore.worker"], {**faked, "PYTHONPATH": str(ROOT)})
    asked = client.request("analyze", **request(site))
    deadline = time.monotonic() + PATIENCE_S
    jumps = {"read": "-1d", "infer": "+365d"}
    while time.monotonic() < deadline:
        for event in client.poll():
            if event.get("stage") in jumps:
                clock.write_text(jumps.pop(event["stage"]))
            if event.get("id") == asked and event["event"] in ("result", "error"):
                client.stop()
                return Ended(int(event["event"] == "error"), event.get("code", ""), event.get("text", ""))
        time.sleep(0.01)
    client.kill()
    return Ended(70, "no-answer", client.log)


WORKER_FAULTS: tuple[Fault, ...] = (
    *(Fault(f"worker: SIGKILL in the stage {name}", _sent(signal.SIGKILL, name))
      for name in ("read", "prepare", "infer", "write")),
    Fault("worker: SIGTERM in the stage infer", _sent(signal.SIGTERM, "infer"), "cancelled"),
    Fault("worker: its asker goes away in the stage infer", _left_alone, given_up=True),
    Fault("worker: FLAIR vanishes after it was asked", _vanished, "file-missing"),
    Fault("worker: standard error is closed", _closed_log),
    Fault("worker: stopped for good (SIGSTOP), and the panel cancels", _stuck, "cancelled"),
    Fault("worker: the clock goes back a day, then forward a year", _clock_jumps),
    *(Fault(f"started with {mib} MiB of address space", partial(_started_anew, limit_mib=mib),
            "out-of-memory" if mib < 4096 else "", either=mib == 2560) for mib in (256, 768, 1536, 2560, 6144)),
)  # fmt: skip
