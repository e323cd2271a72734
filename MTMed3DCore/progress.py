"""How long work tells its listener where it stands, and how the listener stops it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callable told of every step; it may raise `MTMed3DCore.errors.Cancelled` to stop the work there.

    Args:
        stage: one of ``read``, ``prepare``, ``infer``, ``write``.
        fraction: how much of the stage is done, 0 to 1.
        text: the step in words, for example ``"Window 3 of 8"``.
    """

    def __call__(self, stage: str, fraction: float, text: str) -> None: ...


def silent(stage: str, fraction: float, text: str) -> None:
    """The listener of callers that want none."""
