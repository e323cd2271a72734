"""How much memory a program may still have."""

from __future__ import annotations

import os
from contextlib import suppress
from math import inf
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_GROUPS = (
    ("", "memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)
"""Of the second version of control groups and of the first: folder, limit, usage, and what of that is given up when
memory is wanted."""


def available_memory() -> float:
    """Bytes that this process can have: of the machine, and of the container or batch job that it runs in.

    Returns:
        Infinity where nothing tells, as on Windows.
    """
    return min(_left_of_machine(), _left_of_groups())


def _left_of_machine() -> float:
    """Bytes that programs may have of this machine's memory, with what holds files only until it is wanted."""
    with suppress(OSError, ValueError, KeyError):
        return 1024 * _numbers(PROC / "meminfo")["MemAvailable:"]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return inf


def _left_of_groups() -> float:
    """Bytes that the control groups of this process leave it, as containers and batch systems set them."""
    left = inf
    with suppress(OSError, ValueError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            kind, limit, usage, files = _GROUPS[bool(controllers)]
            group = GROUPS / kind / name.lstrip("/")
            for folder in (group, *group.parents):  # a group has no more than those that it is in
                # A container sees its own group in place of the outermost, and has no folder of its name.
                with suppress(OSError, ValueError):  # a group without a limit says "max"
                    most, taken = (int((folder / each).read_text()) for each in (limit, usage))
                    kept = _numbers(folder / "memory.stat")
                    left = min(left, most - taken + sum(kept.get(each, 0) for each in files))
    return left


def _numbers(path: Path) -> dict[str, int]:
    """The first word of each line of a file, and the number after it."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
