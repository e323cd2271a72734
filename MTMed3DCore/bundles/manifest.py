"""The manifest of a bundle: which files it holds, how large each is, and its SHA-256.

It shows damage, an incomplete copy and a changed or added file. It is not a signature: whoever rewrites a file and the
manifest together goes unnoticed, so a bundle is worth as much trust as the place it came from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.hashing import file_sha256

MANIFEST = "configs/manifest.json"
FORMAT = "mtmed3d.bundle/1"
MAX_CONFIG_BYTES = 1 << 20
"""Greatest size of a configuration file; far above any real one, far below what would fill the memory."""
_DESKTOP_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""What file managers leave behind in a folder that was merely looked at."""
_REINSTALL = "Copy or install the bundle again from where it came from."


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file: SHA-256 as 64 hexadecimal digits, size in bytes."""

    sha256: str
    size: int


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a bundle.

    Args:
        folder: the bundle.
        name: path of the file inside it.

    Raises:
        ModelRefused: the file is missing, beyond `MAX_CONFIG_BYTES`, no JSON, or no object.
    """
    path = folder / name
    if not path.is_file():
        raise ModelRefused("bundle-file-missing", f"The bundle {folder} has no {name}.", _REINSTALL)
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ModelRefused("bundle-config", f"{path} has {size} bytes; at most {MAX_CONFIG_BYTES} are read.")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelRefused("bundle-config", f"{path} is not valid JSON: {error}.", _REINSTALL) from error
    if not isinstance(value, dict):
        raise ModelRefused("bundle-config", f"{path} holds a {type(value).__name__}, not an object.", _REINSTALL)
    return value


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The records of a bundle's manifest by POSIX path.

    Raises:
        ModelRefused: no manifest, another format, or an entry that is malformed or points outside the bundle.
    """
    content = read_json(folder, MANIFEST)
    if content.get("format") != FORMAT:
        raise ModelRefused(
            "bundle-format",
            f"{folder / MANIFEST} has format {content.get('format')!r}, not {FORMAT!r}.",
            "Use a bundle that this version of MTMed3D wrote, or another version of MTMed3D.",
        )
    files = content.get("files")
    if not isinstance(files, dict):
        raise ModelRefused("bundle-config", f"{folder / MANIFEST} has no object `files`.", _REINSTALL)
    return {name: _record(folder, name, entry) for name, entry in files.items()}


def _record(folder: Path, name: str, entry: object) -> FileRecord:
    parts = PurePosixPath(name).parts
    inside = parts and not name.startswith("/") and ".." not in parts and "\\" not in name and ":" not in name
    if not inside:
        raise ModelRefused("bundle-path", f"{folder / MANIFEST} names {name!r}, which is no path inside the bundle.")
    match entry:
        case {"sha256": str(sha256), "bytes": int(size)} if len(sha256) == 64 and size >= 0:
            return FileRecord(sha256, size)
    raise ModelRefused("bundle-config", f"{folder / MANIFEST} has no usable sha256 and bytes for {name}: {entry!r}.")


def write_manifest(folder: Path) -> None:
    """Record every file of `folder` in its manifest."""
    files = {name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for name, path in _present(folder)}
    content = {"format": FORMAT, "files": dict(sorted(files.items()))}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def check_file_set(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Refuse a bundle whose files are not exactly those of the manifest, by name and size; reads no content.

    Raises:
        ModelRefused: a file is missing, extra, a link, or of another size.
    """
    present = dict(_present(folder))
    for name, record in records.items():
        if name not in present:
            raise ModelRefused("bundle-file-missing", f"The bundle {folder} has no {name}.", _REINSTALL)
        size = present[name].stat().st_size
        if size != record.size:
            text = f"{name} of the bundle {folder} has {size} bytes; the manifest says {record.size}."
            raise ModelRefused("bundle-tampered", text, _REINSTALL)
    extra = sorted(set(present) - set(records))
    if extra:
        text = f"The bundle {folder} holds {', '.join(extra)}, which its manifest does not name."
        raise ModelRefused("bundle-file-extra", text, "Remove what was added, or install the bundle again.")


def check_hash(folder: Path, name: str, record: FileRecord, found: str) -> None:
    """Refuse a file whose SHA-256 `found` is not the recorded one.

    Raises:
        ModelRefused: with the file's name, the expected and the found hash.
    """
    if found != record.sha256:
        text = f"{name} of the bundle {folder} was changed: SHA-256 expected {record.sha256}, found {found}."
        raise ModelRefused("bundle-tampered", text, _REINSTALL)


def _present(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a bundle but the manifest and desktop litter, as (POSIX path, path)."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            text = f"{name} of the bundle {folder} is a link; a bundle holds its files itself."
            raise ModelRefused("bundle-path", text, "Copy the bundle with its links followed.")
        if path.is_file() and name != MANIFEST and path.name not in _DESKTOP_LITTER:
            yield name, path
