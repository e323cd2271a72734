"""An output folder appears complete or not at all, and never loses what a person changed in it.

Files are written into a hidden partial folder on the same file system and renamed into place. A hidden manifest,
``.mtmed3d.json``, keeps the SHA-256 of every file as written: a file that differs from it has been edited.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from uuid import uuid4

from MTMed3DCore.errors import MTMed3DError, OutOfResources, WrongUse
from MTMed3DCore.hashing import file_sha256

MANIFEST = ".mtmed3d.json"
MANIFEST_SCHEMA = "mtmed3d.output/1"
PARTIAL = ".mtmed3d-partial-"
_REPLACED = "replaced"
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
            ``output-not-writable``.
        OutOfResources: ``disk-full``.
    """
    folder = folder.resolve()
    existing = _check_target(folder, overwrite)
    # Inside an existing folder, because that may be a mount point, out of which nothing can be renamed.
    partial = (folder if existing else folder.parent) / f"{PARTIAL}{uuid4().hex[:12]}"
    try:
        partial.mkdir(parents=True)
        yield partial
        _write_manifest(partial)
        if _check_target(folder, overwrite):
            _replace_files(partial, folder, last)
        else:
            partial.rename(folder)
    except OSError as error:
        raise _refusal(error, folder) from error
    finally:
        if not any((partial / _REPLACED).rglob("*.*")):  # earlier files that could not be put back are kept there
            shutil.rmtree(partial, ignore_errors=True)


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
    if not folder.is_dir():
        raise WrongUse("output-is-a-file", f"The output folder {folder} is a file.", "Name a folder.")
    entries = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(PARTIAL))
    if entries and not overwrite:
        text = f"The output folder {folder} is not empty: it holds {_some(entries)}."
        raise WrongUse("output-not-empty", text, "Choose another folder, or allow overwriting.")
    edited = edited_files(folder)
    if edited:
        text = f"In the output folder {folder}, {_some(edited)} changed after it was written; edits are never replaced."
        raise WrongUse("output-edited", text, _REMEDY)
    return True


def _replace_files(partial: Path, folder: Path, last: str) -> None:
    """Move our earlier files out of `folder` and the new ones in; undo every move should one fail."""
    new = _files(partial)
    ours = [name for name in (*read_manifest(folder), MANIFEST) if (folder / name).is_file()]
    foreign = sorted(name for name in set(new) - set(ours) if (folder / name).exists())
    if foreign:
        text = f"The output folder {folder} already holds {_some(foreign)}, not written by this program."
        raise WrongUse("output-not-ours", text, _REMEDY)
    aside = partial / _REPLACED
    moves = [(folder / name, aside / name) for name in sorted(ours, key=lambda name: name != last)]
    moves += [(partial / name, folder / name) for name in sorted(new, key=lambda name: name == last)]
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
    for parent in {(folder / name).parent for name in ours} - {folder}:
        if not any(parent.iterdir()):
            parent.rmdir()


def _write_manifest(folder: Path) -> None:
    files = {name: file_sha256(folder / name) for name in _files(folder)}
    document = {"schema": MANIFEST_SCHEMA, "files": files}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8", newline="\n")


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


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
