"""Talks to the worker process; standard library only, and no Qt: the panel asks `WorkerClient.poll` from a timer.

The child's two outputs are read by threads of their own, so neither a chatty child nor a slow panel can block the
other.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import IO, Any

LOG_LINES = 2000
"""Lines of the child's messages that are kept."""
LONG_COMMANDS = ("analyze", "load")
DIED = "worker-died"

Event = dict[str, Any]


def worker_command(python: str = "") -> list[str]:
    """How the worker is started: with the interpreter that has the Python packages, Slicer's own by default."""
    return [python or os.environ.get("MTMED3D_WORKER_PYTHON") or sys.executable, "-m", "MTMed3DCore.worker"]


class WorkerClient:
    """One worker process, started when it is first needed and started again when it has died.

    Args:
        command: program and arguments; None for `worker_command`.
        environment: variables to add to this process' own, or to take away where the value is None.
    """

    def __init__(
        self, command: Sequence[str] | None = None, environment: Mapping[str, str | None] | None = None
    ) -> None:
        self.command = list(command) if command is not None else worker_command()
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._events: queue.SimpleQueue[tuple[subprocess.Popen[bytes], Event | None]] = queue.SimpleQueue()
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._ids = count(1)
        self._open: dict[str, str] = {}

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id, or None."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def log(self) -> str:
        """What the child printed, the latest lines."""
        return "\n".join(self._log)

    def start(self) -> None:
        """Start the process if there is none.

        Raises:
            OSError: the program cannot be started.
        """
        if self.running:
            return
        self._forget()
        environment = {**os.environ, **{k: v for k, v in self._environment.items() if v is not None}}
        for name, value in self._environment.items():
            if value is None:
                environment.pop(name, None)
        if os.path.realpath(self.command[0]) != os.path.realpath(sys.executable):
            for name in ("PYTHONHOME", "PYTHONPATH"):  # this interpreter's, which would mislead another one
                if name not in self._environment:
                    environment.pop(name, None)
        flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            creationflags=flags,
        )
        self._process = process
        for target, stream in ((self._read_events, process.stdout), (self._read_log, process.stderr)):
            threading.Thread(target=target, args=(process, stream), daemon=True).start()

    def request(self, command: str, **fields: Any) -> str:
        """Send a request, starting the process if need be; returns the id that its events carry.

        A process that cannot take it gives an error event of the code ``worker-died`` instead of an exception.

        Raises:
            OSError: the program cannot be started.
        """
        self.start()
        request_id = str(next(self._ids))
        self._open[request_id] = command
        line = json.dumps({"id": request_id, "command": command, **fields}) + "\n"
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(OSError):  # a process that has just died is reported by its reader
            self._process.stdin.write(line.encode("utf-8"))
            self._process.stdin.flush()
        return request_id

    def cancel(self, request_id: str) -> str:
        """Ask the worker to stop a request; returns the id of the asking."""
        return self.request("cancel", target=request_id)

    def poll(self) -> list[Event]:
        """Events since the last call, in order; never waits.

        A process that died gives one error event for each request that it left unanswered.
        """
        events: list[Event] = []
        while True:
            try:
                process, event = self._events.get_nowait()
            except queue.Empty:
                return events
            if process is not self._process:
                continue  # of a process that was stopped or replaced on purpose
            if event is None:
                events += self._obituary(process)
                continue
            if event.get("event") in ("result", "error"):
                self._open.pop(str(event.get("id")), None)
            events.append(event)

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the process: politely by closing its input, then by force."""
        process = self._process
        if process is None:
            return
        self._forget()
        with suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """End the process by force, at once."""
        process = self._process
        self._forget()
        if process is not None:
            process.kill()
            process.wait()

    def _forget(self) -> None:
        """What the present process still sends no longer counts."""
        self._process = None
        self._open.clear()

    def _obituary(self, process: subprocess.Popen[bytes]) -> list[Event]:
        code = process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        last = self._log[-1] if self._log else "it said nothing"
        text = f"The analysis process ended unexpectedly ({how}; {last})."
        remedy = "Analyze again; if it happens again, copy the log into a report. Too little memory is the usual cause."
        unanswered = list(self._open)
        self._forget()
        return [{"id": i, "event": "error", "code": DIED, "text": text, "remedy": remedy} for i in unanswered]

    def _read_events(self, process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
        for raw in stream:
            line = raw.decode("utf-8", errors="replace").strip()
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict):
                self._events.put((process, event))
            elif line:
                self._log.append(line)
        self._events.put((process, None))
        stream.close()

    def _read_log(self, _process: subprocess.Popen[bytes], stream: IO[bytes]) -> None:
        for raw in stream:
            self._log.append(raw.decode("utf-8", errors="replace").rstrip())
        stream.close()
