"""An output folder appears complete or not at all, and never loses what a person changed in it.

Files are written into a hidden folder on the same file system, see `workplace`, and renamed into place. A hidden
manifest, ``.mtmed3d.json``, keeps the SHA-256 of every file as written: a file that differs from it has been edited.
Where a process was killed between two renames, the next one that writes there puts the earlier files back first.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial as given
from pathlib import Path, PurePosixPath

from MTMed3DCore.errors import MTMed3DError, OutOfResources, WrongUse
from MTMed3DCore.exports.workplace import FILES, PARTIAL, REPLACED, file_names, workplace
from MTMed3DCore.hashing import file_sha256

MANIFEST = ".mtmed3d.json"
MANIFEST_SCHEMA = "mtmed3d.output/1"
_REMEDY = "Choose another output folder, or move the files away."


@contextmanager
def publishing(folder: Path, *, overwrite: bool, last: str) -> Iterator[Path]:
    """A fresh folder to write into, moved into place as `folder` when the block ends without an error.

    An existing folder keeps everything that this function did not write earlier; its own earlier files are replaced,
    and put back should a rename fail.

    Args:
        folder: where the files shall stand.
        overwrite: whether a folder that already holds something may be written into.
        last: the file that marks a complete result: taken away first and put into place last.

    Raises:
        WrongUse: ``output-is-a-file``, ``output-not-empty`` (without `overwrite`), ``output-edited`` (one of our
            files was changed since), ``output-not-ours`` (a new file would replace one that is not ours),
            ``output-not-writable``, ``output-busy`` (another process writes there at this moment).
        OutOfResources: ``disk-full``.
    """
    folder = folder.resolve()
    _refuse_file(folder)
    try:
        with workplace(folder, given(_recover, folder)) as place:
            _check_target(folder, overwrite)
            partial = place / FILES
            yield partial
            _write_manifest(partial)
            if _check_target(folder, overwrite):
                _replace_files(place, folder, last)
            else:
                partial.rename(folder)
    except OSError as error:
        raise _refusal(error, folder) from error


def read_manifest(folder: Path) -> dict[str, str]:
    """Relative POSIX path and SHA-256 of every file that we wrote into `folder`; empty where there is no manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a damaged manifest claims nothing, so nothing is taken for ours
    return {name: digest for name, digest in entries.items() if _stays_inside(name)}


def edited_files(folder: Path) -> list[str]:
    """Our files in `folder` whose content is no longer what we wrote, as relative POSIX paths."""
    manifest = read_manifest(folder)
    return [n for n, digest in manifest.items() if (folder / n).is_file() and file_sha256(folder / n) != digest]


def _check_target(folder: Path, overwrite: bool) -> bool:
    """Whether the folder exists already; refused when it must not be written into."""
    if not folder.exists():
        return False
    _refuse_file(folder)
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(PARTIAL))
    if entries and not overwrite:
        text = f"The output folder {folder} is not empty: it holds {_some(entries)}."
        raise WrongUse("output-not-empty", text, "Choose another folder, or allow overwriting.")
    edited = edited_files(folder)
    if edited:
        text = f"In the output folder {folder}, {_some(edited)} changed after it was written; edits are never replaced."
        raise WrongUse("output-edited", text, _REMEDY)
    return True


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise WrongUse("output-is-a-file", f"The output folder {folder} is a file.", "Name a folder.")


def _replace_files(place: Path, folder: Path, last: str) -> None:
    """Move our earlier files out of `folder` and the new ones in; undo every move should one fail."""
    partial, aside = place / FILES, place / REPLACED
    new = file_names(partial)
    ours = [name for name in (*read_manifest(folder), MANIFEST) if (folder / name).is_file()]
    foreign = sorted(name for name in set(new) - set(ours) if (folder / name).exists())
    if foreign:
        text = f"The output folder {folder} already holds {_some(foreign)}, not written by this program."
        raise WrongUse("output-not-ours", text, _REMEDY)
    # `_recover` relies on this order: the earlier manifest goes last, and the new one comes first.
    moves = [(folder / name, aside / name) for name in sorted(ours, key=lambda name: name != last)]
    moves += [(partial / name, folder / name) for name in sorted(new, key=lambda n: (n == last, n != MANIFEST))]
    aside.mkdir()
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            done.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists():
                target.rename(source)
        raise
    shutil.rmtree(aside, ignore_errors=True)
    _remove_empty({(folder / name).parent for name in ours} - {folder})


def _recover(folder: Path, place: Path) -> None:
    """Undo the moves of a process that was killed before it had made the last one.

    Raises:
        WrongUse: ``output-edited``, where an earlier file stood, there is something else by now.
    """
    waiting = file_names(place / FILES)
    if not (place / REPLACED).is_dir() or not waiting:
        return  # nothing had been moved, or everything
    if MANIFEST not in waiting:  # it came in, so other new files may have
        new = [name for name, digest in read_manifest(folder).items() if _is(folder / name, digest)]
        for name in (*new, MANIFEST):
            (folder / name).unlink(missing_ok=True)
        _remove_empty({(folder / name).parent for name in (*new, *waiting)} - {folder})
    for name in file_names(place / REPLACED):
        target = folder / name
        if target.exists():
            text = f"{target} appeared after an interrupted run; the file that stood there is in {place / REPLACED}."
            raise WrongUse("output-edited", text, _REMEDY)
        target.parent.mkdir(parents=True, exist_ok=True)
        (place / REPLACED / name).rename(target)


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def _remove_empty(folders: set[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_manifest(folder: Path) -> None:
    files = {name: file_sha256(folder / name) for name in file_names(folder)}
    document = {"schema": MANIFEST_SCHEMA, "files": files}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8", newline="\n")
    for name in (*files, MANIFEST):
        with (folder / name).open("r+b") as stream:
            os.fsync(stream.fileno())  # no rename may reach the disk before the content


def _stays_inside(name: str) -> bool:
    """Whether a manifest's path is a plain relative one; a forged manifest must not reach other folders."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and not {"..", "\\", ":"} & {*path.parts, *name}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _refusal(error: OSError, folder: Path) -> MTMed3DError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResources("disk-full", f"No space is left to write {folder}.", "Free space or choose another disk.")
    return WrongUse("output-not-writable", f"The output folder {folder} cannot be written: {error}.", _REMEDY)
