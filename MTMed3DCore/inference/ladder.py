"""What to try when memory is short, step by step, each named in the findings."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from MTMed3DCore.inference.settings import GRANULE
from MTMed3DCore.inference.tiling import Triple
from MTMed3DCore.notice import Notice

Result = TypeVar("Result")
SMALLEST = 2 * GRANULE
GPU_BATCH = 4
"""Windows that go through a GPU at a time where its memory allows it."""
_PHRASES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "unable to find an engine to execute",  # cuDNN, none of whose ways to convolve got its workspace
)


@dataclass(frozen=True)
class Rung:
    """One way to run.

    Args:
        device: to run on.
        window: sides of the windows; None for the model's.
        batch: windows at a time.
        notice: what the findings say if it came to this.
        focused: the whole volume is encoded at once, and segmented only where something gives reason to.
        on_host: the volume and the regions stay in the host's memory; the CPU is its own host.
    """

    device: torch.device
    window: Triple | None
    batch: int
    notice: Notice | None = None
    focused: bool = False
    on_host: bool = False


def ladder(
    device: torch.device, window: Triple, batch: int, may_leave: bool, focused: bool = False, too_large: bool = False
) -> list[Rung]:
    """Ways to run in the order in which they are tried.

    Args:
        device: the first choice.
        window: sides of the windows, the first choice.
        batch: windows at a time, the first choice.
        may_leave: whether the CPU may take over from another device.
        focused: the first choice.
        too_large: it would have been, had memory sufficed.
    """
    text = f"The memory of {device} did not suffice for the whole brain at once; it was analysed window by window."
    rungs = [Rung(device, window, batch, focused=True)] if focused else []
    rungs.append(Rung(device, window, batch, Notice("memory-not-whole", text) if focused or too_large else None))
    if batch > 1:
        text = f"The memory of {device} did not suffice for {batch} windows at a time; one at a time was used."
        rungs.append(Rung(device, window, 1, Notice("memory-one-window", text)))
    small = _no_larger(window, SMALLEST)
    if small != window:
        text = (
            f"The memory of {device} did not suffice for the model's windows; windows of {SMALLEST} voxels were used."
        )
        rungs.append(Rung(device, small, 1, Notice("memory-small-windows", text)))
    if device.type != "cpu":
        text = f"The memory of {device} did not suffice for the regions; they were gathered on the host."
        rungs.append(Rung(device, small, 1, Notice("memory-on-host", text), on_host=True))
    if may_leave and device.type != "cpu":
        rungs.append(Rung(torch.device("cpu"), window, 1, left_notice(device)))
    return rungs


def left_notice(device: torch.device) -> Notice:
    """What the findings say where the CPU took over."""
    return Notice("device-fallback", f"The memory of {device} did not suffice; the CPU was used.")


def climb_down(rungs: list[Rung], run: Callable[[Rung], Result]) -> tuple[Result, Rung]:
    """Run by the first rung whose memory suffices.

    Raises:
        MemoryError, RuntimeError: of the last rung, where its memory did not suffice either.
    """
    for rung in rungs[:-1]:
        try:
            return run(rung), rung
        except (MemoryError, RuntimeError) as error:
            if not short_of_memory(error):
                raise
        clear_away(rung.device)
    return run(rungs[-1]), rungs[-1]


def clear_away(device: torch.device) -> None:
    """Give back what a failed run held, once its error is handled: until then the traceback holds its tensors."""
    gc.collect()
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()


def short_of_memory(error: BaseException) -> bool:
    """Whether an error of numpy, torch or a device says that memory is short.

    The CPU allocator of torch, MPS and the libraries of CUDA raise plain RuntimeErrors.
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        phrase in str(error).lower() for phrase in _PHRASES
    )


def _no_larger(window: Triple, side: int) -> Triple:
    x, y, z = (min(each, side) for each in window)
    return x, y, z
