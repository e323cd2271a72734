"""Where files are written before they are put into place: held by one process, cleared of what a killed one left.

A hidden folder, inside the output folder where that exists, else beside it::

    lock        held while a process writes; the kernel gives it back when that process ends, however it ends
    files/      what is being written
    replaced/   there as soon as files move: the earlier ones that the new ones take the place of
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from MTMed3DCore.errors import WrongUse

PARTIAL = ".mtmed3d-partial-"
FILES, REPLACED = "files", "replaced"
_LOCK = "lock"


@contextmanager
def workplace(folder: Path, recover: Callable[[Path], None]) -> Iterator[Path]:
    """The workplace of an output folder with an empty `FILES` in it; removed when the block ends.

    Earlier files that lie in `REPLACED` when the block ends are kept there.

    Args:
        folder: the output folder, which need not exist.
        recover: called with the workplace of a process that was killed, before it is cleared.

    Raises:
        WrongUse: ``output-busy``, another process writes into `folder` at this moment.
        OSError: nothing can be written there.
    """
    # Inside an existing folder, because that may be a mount point, out of which nothing can be renamed.
    parent = folder if folder.is_dir() else folder.parent
    place = parent / f"{PARTIAL}{hashlib.sha256(os.fsencode(folder.name)).hexdigest()[:12]}"
    place, let_go = _hold(place, folder)
    try:
        recover(place)
        _clear(place)
        (place / FILES).mkdir()
        yield place
    finally:
        if not file_names(place / REPLACED):
            _clear(place)
        let_go()
        with suppress(OSError):  # gone already, or something is kept, or the next process is here
            place.rmdir()


def file_names(folder: Path) -> list[str]:
    """Relative POSIX path of every file below `folder`, which need not exist."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _hold(place: Path, folder: Path) -> tuple[Path, Callable[[], None]]:
    """Make the workplace and lock it; returns it, and what gives the lock back.

    Where the file system has no locks, or the package for them is missing, it is a place that no other process knows,
    and what a killed one left is not found.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError:  # torch requires it; a panel may run without torch
        return _own(place), lambda: None
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        text = f"Another run is writing into {folder} at this moment."
        raise WrongUse("output-busy", text, "Wait until it has ended, or give another folder.") from error
    except NotImplementedError:
        _unlock(place)
        return _own(place), lambda: None

    def let_go() -> None:
        _unlock(place)
        lock.release()

    return place, let_go


def _unlock(place: Path) -> None:
    """Remove the lock, and the workplace where nothing else is in it."""
    with suppress(OSError):  # on Windows the file is removed as the lock is released
        (place / _LOCK).unlink()
    with suppress(OSError):  # something is kept
        place.rmdir()


def _own(place: Path) -> Path:
    unique = place.with_name(f"{place.name}-{uuid4().hex[:8]}")
    unique.mkdir(parents=True)
    return unique


def _clear(place: Path) -> None:
    for name in (FILES, REPLACED):
        shutil.rmtree(place / name, ignore_errors=True)
