"""Stopping an analysis between two layers of the network, without losing the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from MTMed3DCore.errors import Cancelled


class Stop:
    """A wish to stop, set by one thread and met by another.

    A window of the network takes seconds on a CPU, so progress between windows is too rare to meet it within one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wished = False
        self._settled = False

    def wish(self) -> bool:
        """Let the work stop at the next point where it looks; returns whether it still will."""
        with self._lock:
            self._wished = self._wished or not self._settled
            return self._wished

    def check(self) -> None:
        """Stop here if somebody wished it.

        Raises:
            Cancelled: somebody did.
        """
        if self._wished:
            raise Cancelled

    def settle(self) -> None:
        """Check for the last time: from here on the work is completed, and every later wish comes too late.

        Raises:
            Cancelled: somebody wished it before.
        """
        with self._lock:
            self.check()
            self._settled = True

    @contextmanager
    def between_layers(self) -> Iterator[None]:
        """Check before every layer that runs in this thread."""
        from torch.nn.modules.module import register_module_forward_pre_hook

        thread = threading.get_ident()

        def check(_module: Any, _inputs: Any) -> None:
            if threading.get_ident() == thread:
                self.check()

        handle = register_module_forward_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()
