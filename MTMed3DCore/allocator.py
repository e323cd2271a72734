"""Memory that the process keeps instead of giving it back to the system after every tensor."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of the two settings, from ``malloc.h``."""
_LARGEST_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next tensor of that size.

    The attention matrices of one step come to hundreds of MB. By default glibc maps each anew, and the kernel clears
    every page of it: half the time of an encoder's forward and backward pass on a CPU. The peak is the same; between
    the peaks the process stays large.

    Returns:
        Whether the C library took it; elsewhere than on Linux with glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_KEPT))
