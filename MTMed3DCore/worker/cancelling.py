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
        self._wished = threading.Event()

    def wish(self) -> None:
        """Let the work stop at the next point where it looks."""
        self._wished.set()

    def check(self) -> None:
        """Stop here if somebody wished it.

        Raises:
            Cancelled: somebody did.
        """
        if self._wished.is_set():
            raise Cancelled

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
