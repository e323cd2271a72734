"""Every way in which a request can fail, as one refusal with a code, a text and a remedy."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from contextlib import suppress

from MTMed3DCore.errors import MTMed3DError, OutOfResources, WrongUse

OUT_OF_MEMORY = "out-of-memory"
_MEMORY_CODES = (OUT_OF_MEMORY, "memory")
_MEMORY_WORDS = re.compile(
    r"out of memory|enough memory|allocate memory|bad_alloc|failed to map segment|start new thread"
)
"""torch's CPU allocator, MPS and ITK raise plain RuntimeErrors, a library that does not fit in an ImportError."""


def as_refusal(error: BaseException, device: str) -> MTMed3DError:
    """What the asker is told of an exception; a traceback goes to standard error where nobody foresaw it.

    Args:
        error: what was raised.
        device: that the request asked for, ``"auto"`` included.
    """
    known = foreseen(error, device)
    if known is None or isinstance(error, OSError | ImportError):
        log_traceback(error)
    if known is not None:
        return known
    text = f"Something failed that should not: {type(error).__name__}: {error}."
    return MTMed3DError("internal-error", text, "Report it, with the log.")


def foreseen(error: BaseException, device: str) -> MTMed3DError | None:
    """The refusal that an exception stands for; None where it is a fault of the software.

    Args:
        error: what was raised.
        device: that was asked for, ``"auto"`` included.
    """
    if _is_memory(error):
        return OutOfResources(
            OUT_OF_MEMORY,
            f"The memory of {_chosen(device)} does not suffice for this request.",
            "Close other programs, choose the CPU as the device, or choose a model with a smaller window.",
        )
    if isinstance(error, MTMed3DError):
        return error
    if isinstance(error, ImportError):
        text = f"A Python package is missing or damaged: {error}."
        return OutOfResources("package-missing", text, f"Install it for {sys.executable}.")
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{error.filename or 'A file'}: {error.strerror or error}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutOfResources("disk-full", text, "Free some space, or give another output folder.")
        return WrongUse("file-access", text, "Check that the path exists and that you may read and write there.")
    return None


def log_traceback(error: BaseException) -> None:
    """Show where an exception comes from on standard error, as far as anybody listens there."""
    with suppress(OSError, ValueError):  # a log that nobody keeps must not cost the asker the answer
        traceback.print_exception(error)


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, OutOfResources):
        return error.code in _MEMORY_CODES
    # By its name, because torch need not be loaded here; every OutOfMemoryError of torch is one class.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    named = named or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return named or (isinstance(error, RuntimeError | ImportError) and bool(_MEMORY_WORDS.search(str(error).lower())))


def _chosen(device: str) -> str:
    """The device that was used, as far as it can be known without loading torch for it."""
    if device != "auto" or "torch" not in sys.modules:
        return f"the device {device!r}"
    from MTMed3DCore.inference import choose_device

    return f"the device {str(choose_device(device))!r}"
