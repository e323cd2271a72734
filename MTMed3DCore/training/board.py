"""The course of a run for TensorBoard, where it is installed (``pip install mtmed3d[train]``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Board:
    """Writes scalars as they come; does nothing without the package ``tensorboard``.

    Args:
        folder: of the event files.
        first_step: of this session; what an earlier one wrote after it is hidden.
        wanted: False for a process that writes nothing.
    """

    def __init__(self, folder: Path, first_step: int, wanted: bool = True) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def write(self, group: str, values: Mapping[str, float], step: int) -> None:
        """One point on the curve of each name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
