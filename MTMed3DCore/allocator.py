"""When freed memory goes back to the system: never between the steps of a training, always between two requests."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import cast

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""glibc's numbers of the settings, from ``malloc.h``."""
_LARGEST_KEPT = 2**31 - 1


def share_one_heap() -> bool:
    """Tell the C library that all threads shall have the heap of the first; to be called before there are others.

    A thread's own heap ends at 64 MB, and what is larger is mapped anew each time, whatever `keep_freed_memory` asks
    for: the decoder of 48 features takes a third longer so. Workers and cohorts compute in threads.

    Returns:
        Whether the C library took it; elsewhere than on Linux with glibc nothing is done.
    """
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_ARENA_MAX, 1))


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next tensor of that size.

    The attention matrices of one step come to hundreds of MB. By default glibc maps each anew, and the kernel clears
    every page of it: half the time of an encoder's forward and backward pass on a CPU. The peak is the same; between
    the peaks the process stays large.

    Returns:
        Whether the C library took it; elsewhere than on Linux with glibc nothing is done.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_KEPT))


def give_back_freed_memory() -> bool:
    """Give every whole page that is free back to the system.

    Blocks that outlive a request lie between those that it freed; glibc keeps the free pages around them, and a process
    that serves many requests seems to grow. Takes about a millisecond for each 100 MB that are free.

    Returns:
        Whether anything was given back; elsewhere than on Linux with glibc nothing is done.
    """
    trim = _of_glibc("malloc_trim")
    return trim is not None and bool(trim(ctypes.c_size_t(0)))


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, if that is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return cast("Callable[..., int]", getattr(ctypes.CDLL(None), name))
    except (AttributeError, OSError):  # another C library
        return None
