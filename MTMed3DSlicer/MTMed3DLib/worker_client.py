"""Talks to the worker process; standard library only, and no Qt: the panel asks `WorkerClient.poll` from a timer.

The child's two outputs are read by threads of their own, so neither a chatty child nor a slow panel can block the
other. The child ends when its input closes, so it never outlives this process, however that ends.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import IO, Any

LOG_LINES = 2000
"""Lines of the log that are kept."""
LONGEST_LINE = 1_000_000
"""Bytes of an event; what is longer is no event."""
LONGEST_LOG_LINE = 2000
"""Bytes; longer lines are split."""
END_WAIT_S = 2.0
"""How long a child that has closed its output may take to end before it is ended."""
DIED = "worker-died"

Event = dict[str, Any]


def worker_command(python: str = "") -> list[str]:
    """How the worker is started: with the interpreter that has the Python packages, Slicer's own by default."""
    return [python or os.environ.get("MTMED3D_WORKER_PYTHON") or sys.executable, "-m", "MTMed3DCore.worker"]


class WorkerClient:
    """One worker process, started when it is first needed and started again when it has died.

    Every method is called from one thread.

    Args:
        command: program and arguments; None for `worker_command`.
        environment: variables to add to this process' own, or to take away where the value is None. Where the program
            is another one than this process' interpreter, ``PYTHONHOME`` and ``PYTHONPATH`` are taken away unless they
            are named here.
    """

    def __init__(
        self, command: Sequence[str] | None = None, environment: Mapping[str, str | None] | None = None
    ) -> None:
        self.command = list(command) if command is not None else worker_command()
        self._environment = dict(environment or {})
        self._child: _Child | None = None
        self._log = _Log()
        self._ids = count(1)
        self._open: list[str] = []
        self._late: list[Event] = []

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._child is not None and self._child.process.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id, or None."""
        return self._child.process.pid if self._child is not None and self.running else None

    @property
    def log(self) -> str:
        """The latest lines of what was asked (``->``), what was answered (``<-``), and what else the child printed."""
        return self._log.text()

    def start(self) -> None:
        """Start the process if there is none.

        Raises:
            OSError: the program cannot be started.
        """
        if self.running:
            return
        if self._child is not None:  # it has died and nobody has polled since: its last words are not lost
            self._child.reader.join(END_WAIT_S)
            self._late += self._events_of(self._child)
            self._late += self._bury()
        self._child = _Child(self.command, child_environment(self.command[0], self._environment), self._log)

    def request(self, command: str, **fields: Any) -> str:
        """Send a request, starting the process if need be; returns the id that its events carry.

        A process that cannot take it gives an error event of the code ``worker-died`` instead of an exception.

        Raises:
            OSError: the program cannot be started.
        """
        self.start()
        assert self._child is not None
        request_id = str(next(self._ids))
        self._open.append(request_id)
        self._child.say(json.dumps({"id": request_id, "command": command, **fields}))
        return request_id

    def cancel(self, request_id: str) -> str:
        """Ask the worker to stop a request; returns the id of the asking.

        The request then ends with an error of the code ``cancelled``, unless it was just being completed.
        """
        return self.request("cancel", target=request_id)

    def poll(self) -> list[Event]:
        """Events since the last call, in order; never waits.

        A process that died gives one error event for each request that it left unanswered, with the code `DIED`.
        """
        events, self._late = self._late, []
        if self._child is not None:
            events += self._events_of(self._child)
        if self._child is not None and self._child.ended.is_set():
            events += self._events_of(self._child)  # what came in between
            events += self._bury()
        return events

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the process: politely by closing its input, then by force. Nothing of it is reported any more."""
        child, self._child = self._child, None
        self._open.clear()
        self._late.clear()
        if child is not None:
            child.end(timeout_s)

    def kill(self) -> None:
        """End the process by force, at once."""
        self.stop(0.0)

    def _events_of(self, child: _Child) -> list[Event]:
        events: list[Event] = []
        with suppress(queue.Empty):
            while True:
                event = child.events.get_nowait()
                if event.get("event") in ("result", "error") and event.get("id") in self._open:
                    self._open.remove(str(event["id"]))
                events.append(event)
        return events

    def _bury(self) -> list[Event]:
        """Errors of all that the dead process has not answered."""
        child, self._child = self._child, None
        assert child is not None
        child.end(END_WAIT_S)
        code = child.process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        text = f"The analysis process ended unexpectedly ({how}; {child.last_words or 'it said nothing'})."
        remedy = "Analyze again; if it happens again, copy the log into a report. Too little memory is the usual cause."
        self._log.add(text)
        unanswered, self._open = self._open, []
        return [{"id": i, "event": "error", "code": DIED, "text": text, "remedy": remedy} for i in unanswered]


def child_environment(program: str, changes: Mapping[str, str | None]) -> dict[str, str]:
    """The variables of a child: this process' own with `changes`, see `WorkerClient`."""
    # Compared without following links, because a virtual environment's interpreter is a link to another one's.
    same = os.path.normcase(os.path.abspath(shutil.which(program) or program)) == os.path.normcase(
        os.path.abspath(sys.executable or "")
    )
    misleading = {} if same else {"PYTHONHOME": None, "PYTHONPATH": None}
    merged: dict[str, str | None] = {**os.environ, **misleading, **changes}
    return {name: value for name, value in merged.items() if value is not None}


class _Log:
    """The latest lines, written by several threads."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)

    def text(self) -> str:
        with self._lock:
            return "\n".join(self._lines)


class _Child:
    """A running process with the threads that read it.

    Attributes:
        events: what it has answered and nobody has taken.
        ended: set after the last event, when the process is gone.
        last_words: the last line that it printed besides events.
        reader: the thread that sets `ended`.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: _Log) -> None:
        self._log = log
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.last_words = ""
        pipe, no_window = subprocess.PIPE, getattr(subprocess, "CREATE_NO_WINDOW", 0)
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(environment), creationflags=no_window
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._input = self.process.stdin
        self._listener = self._thread(self._read_messages, self.process.stderr)
        self.reader = self._thread(self._read_events, self.process.stdout)

    def say(self, line: str) -> None:
        """Write one line; a process that has just died is reported by `ended`."""
        self._log.add(f"-> {line}")
        with suppress(OSError):
            self._input.write(line.encode("utf-8") + b"\n")
            self._input.flush()

    def end(self, timeout_s: float) -> None:
        """Close the input, wait, and kill; afterwards the process is gone and collected."""
        with suppress(OSError):
            self._input.close()  # ends the worker behind a launcher as well, which no signal would reach
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @staticmethod
    def _thread(target: Callable[[IO[bytes]], None], stream: IO[bytes]) -> threading.Thread:
        thread = threading.Thread(target=target, args=(stream,), name=f"worker-{target.__name__}", daemon=True)
        thread.start()
        return thread

    def _read_events(self, stream: IO[bytes]) -> None:
        for line in _lines(stream, LONGEST_LINE):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if isinstance(event, dict):
                self._log.add(f"<- {line}")
                self.events.put(event)
            else:
                self._hear(line[:LONGEST_LOG_LINE])
        self._listener.join(END_WAIT_S)  # so that the last words are known; a grandchild may hold the pipe open
        try:
            self.process.wait(END_WAIT_S)
        except subprocess.TimeoutExpired:  # without its output it is of no more use
            self.process.kill()
            self.process.wait()
        self.ended.set()

    def _read_messages(self, stream: IO[bytes]) -> None:
        for line in _lines(stream, LONGEST_LOG_LINE):
            self._hear(line)

    def _hear(self, line: str) -> None:
        self.last_words = line
        self._log.add(line)


def _lines(stream: IO[bytes], longest: int) -> Iterator[str]:
    """Lines that are not empty, decoded and stripped, in pieces of `longest` bytes; closes the stream."""
    with stream:
        while raw := stream.readline(longest):
            if line := raw.decode("utf-8", errors="replace").strip():
                yield line
