"""Every file below a folder, through links too: shared data are often a folder of links to where the studies lie."""

from __future__ import annotations

import os
from pathlib import Path


def files_below(root: Path) -> list[Path]:
    """Files that are not hidden, as paths that begin with `root`, in the order of their names.

    A folder that is reached in several ways is entered once, where it really lies before where a link leads to it, so
    that links which lead back up end nowhere.
    """
    waiting, entered, files = [root], set(), []
    for start in waiting:  # grows while it is walked
        for place, folders, names in os.walk(start):
            real = os.path.realpath(place)
            if real in entered:
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [path for name in folders if (path := Path(place, name)).is_symlink()]
            files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files)
