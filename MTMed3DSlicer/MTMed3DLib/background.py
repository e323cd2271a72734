"""Work that takes longer than a moment, on a thread of its own while the application stays usable. No Qt, no scene.

Nothing that runs here may touch a node: the caller takes copies from the scene first, on the application's thread, and
the work has only those. An edit made meanwhile can therefore neither wait for the work nor tear its result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

GIVEN_S = 0.01
"""How long the application's thread steps aside at every `Task.give_way`."""


class Report(Protocol):
    """Told of every step: its stage, how much of it is done, and the step in words, as the core's `Progress` is."""

    def __call__(self, stage: str, fraction: float, text: str) -> None: ...


class Stopped(Exception):
    """Somebody wished the work to stop; raised out of its next report."""


class Task:
    """One piece of work on its own thread.

    Args:
        work: gets a `Report`, and must let `Stopped` pass.

    Attributes:
        fraction: how much is done, 0 to 1.
        text: the step in words.
    """

    def __init__(self, work: Callable[[Report], Any]) -> None:
        self.fraction, self.text = 0.0, ""
        self._stop, self._done, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._value: Any = None
        self._error: BaseException | None = None
        self._after: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, args=(work,), name="mtmed3d-task", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        """Whether the work has ended, in whatever way."""
        return self._done.is_set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody wished it to stop."""
        return self._stop.is_set()

    def result(self) -> Any:
        """What the work gave, after waiting for it.

        Raises:
            Stopped: it was cancelled before it was done.
            Exception: whatever the work raised.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the work; returns whether it has come."""
        return self._done.wait(timeout_s)

    def cancel(self) -> None:
        """Let the work stop at its next report."""
        self._stop.set()

    def afterwards(self, call: Callable[[], None]) -> None:
        """Call something when the work has ended, on its thread; at once where it has ended already."""
        with self._lock:
            if not self._done.is_set():
                self._after.append(call)
                return
        call()

    def give_way(self) -> None:
        """Let the work go on for a moment: the application runs other threads' Python code only while it waits."""
        if not self.finished:
            time.sleep(GIVEN_S)

    def _report(self, stage: str, fraction: float, text: str) -> None:
        if self._stop.is_set():
            raise Stopped
        self.fraction, self.text = fraction, text

    def _run(self, work: Callable[[Report], Any]) -> None:
        try:
            self._value = work(self._report)
        except BaseException as error:  # handed to whoever asks for the result
            self._error = error
        with self._lock:
            self._done.set()
            after, self._after = self._after, []
        for call in after:
            call()
