"""Bundles taken out of a zip, a tar or a folder: only plain files, only below the target, only so many and so large.

Every member is looked at before the first is written. What is refused is what archives are used for in attacks:
absolute paths and ``..`` (CWE-22), links and devices (CWE-61), names that fall together on other file systems
(CWE-178), and small files that unpack to huge ones (CWE-409).
"""

from __future__ import annotations

import gzip
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NoReturn

from MTMed3DCore.bundles.bundle import MAX_WEIGHTS_BYTES
from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.progress import Progress, silent

MAX_MEMBERS = 256
"""Files and folders in one bundle; ours have five files."""
MAX_BYTES = MAX_WEIGHTS_BYTES + (64 << 20)
"""Of all files together, and of an archive itself."""
_CHUNK = 1 << 20
_END_BYTES = 22
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAC_LITTER = "__MACOSX/"
_REMEDY = "Take the bundle from where it was made; a proper one holds nothing of the kind."


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]
    folder: bool = False


def unpack(source: Path, target: Path, *, progress: Progress = silent) -> None:
    """Write the files of a zip, a tar (plain or gzip) or a folder below an empty folder.

    Args:
        source: archive or folder.
        target: empty folder.
        progress: told of every file, stage ``unpack``.

    Raises:
        ModelRefused: ``archive-kind``, ``archive-damaged``, ``archive-path``, ``archive-link``, ``archive-device``,
            ``archive-duplicate``, ``archive-count``, ``archive-size`` or ``archive-encrypted``; the text names the
            archive and the member. Nothing is written then, unless damage shows only on reading.
    """
    with _members(source) as found:
        members: list[_Member] = []
        total = 0
        for member in found:
            _check_name(source, member.name)
            members.append(member)
            total += member.size
            if len(members) > MAX_MEMBERS:
                _refuse("count", f"{source} holds more than {MAX_MEMBERS} files; {member.name!r} is one too many.")
            if total > MAX_BYTES:
                _refuse("size", f"{source} unpacks to more than {MAX_BYTES} bytes, with {member.name!r}.")
        _check_distinct(source, members)
        done = 0
        for member in members:
            place = target / member.name
            if member.folder:
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            progress("unpack", done / max(total, 1), member.name)
            _write(source, member, place)
            done += member.size
    progress("unpack", 1.0, f"{done / 1e6:.1f} MB")


@contextmanager
def _members(source: Path) -> Iterator[Iterator[_Member]]:
    with ExitStack() as stack:
        try:
            yield _opened(source, stack)
        except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, struct.error) as error:
            text = f"{source} is damaged: {error}."
            raise ModelRefused("archive-damaged", text, "Download or copy it again.") from error


def _opened(source: Path, stack: ExitStack) -> Iterator[_Member]:
    if source.is_dir():
        return _folder_members(source)
    stream = stack.enter_context(source.open("rb"))
    size = source.stat().st_size
    if size > MAX_BYTES:
        _refuse("size", f"{source} has {size} bytes; at most {MAX_BYTES} are read.")
    start = stream.read(512)
    stream.seek(0)
    if start.startswith(b"PK"):
        _check_directory(source, stream, size)
        return _zip_members(source, stack.enter_context(zipfile.ZipFile(stream)))
    packed = start.startswith(b"\x1f\x8b")
    if not packed and start[257:262] != b"ustar":
        text = f"{source} is neither a zip nor a tar, plain or gzip."
        raise ModelRefused("archive-kind", text, "Pack the bundle's folder as .zip or .tar.gz.")
    plain = stack.enter_context(gzip.GzipFile(fileobj=stream)) if packed else stream
    archive = tarfile.open(fileobj=_Sparing(plain, source), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
    return _tar_members(source, stack.enter_context(archive))


def _folder_members(source: Path) -> Iterator[_Member]:
    for path in sorted(source.rglob("*")):  # does not descend into linked folders
        name, status = path.relative_to(source).as_posix(), path.lstat()
        _check_mode(source, name, status.st_mode)
        folder = stat.S_ISDIR(status.st_mode)
        yield _Member(name, 0 if folder else status.st_size, _opener(path), folder)


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _zip_members(source: Path, archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        name = info.orig_filename  # `filename` is cut at a zero byte
        if info.flag_bits & 1:
            _refuse("encrypted", f"{name!r} in {source} is encrypted.")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            _refuse("kind", f"{name!r} in {source} is packed by method {info.compress_type}.")
        _check_mode(source, name, info.external_attr >> 16)
        if not name.startswith(_MAC_LITTER):
            yield _Member(name, info.file_size, _zip_opener(archive, info), name.endswith("/"))


def _zip_opener(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(info)


def _tar_members(source: Path, archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        if info.issym() or info.islnk():
            _refuse("link", f"{info.name!r} in {source} is a link to {info.linkname!r}.")
        if info.issparse() or not (info.isreg() or info.isdir()):
            _refuse("device", f"{info.name!r} in {source} is neither a plain file nor a folder.")
        name = info.name.removeprefix("./")
        if name not in {"", "."} and not name.startswith(_MAC_LITTER):
            yield _Member(name, 0 if info.isdir() else info.size, _tar_opener(archive, info), info.isdir())


def _tar_opener(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    def opened() -> IO[bytes]:
        stream = archive.extractfile(info)
        if stream is None:
            raise tarfile.ReadError(f"{info.name} has no content")
        return stream

    return opened


class _Sparing:
    """A stream that refuses the long reads with which a forged header would fill the memory, and huge contents."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, source: Path) -> None:
        self._stream = stream
        self._source = source

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * _CHUNK:
            _refuse("size", f"{self._source} has a header of {size} bytes.")
        return self._stream.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        if position > MAX_BYTES + (1 << 20):
            _refuse("size", f"{self._source} unpacks to more than {MAX_BYTES} bytes.")
        return self._stream.seek(position, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _check_directory(source: Path, stream: BinaryIO, size: int) -> None:
    """Refuse a zip whose table of contents would fill the memory, before `zipfile` reads it whole."""
    stream.seek(max(0, size - (1 << 16) - _END_BYTES))
    tail = stream.read()
    stream.seek(0)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END_BYTES:
        raise zipfile.BadZipFile("it has no table of contents")
    count, directory = struct.unpack_from("<HI", tail, at + 10)
    if count > MAX_MEMBERS:
        _refuse("count", f"{source} holds {count} files; at most {MAX_MEMBERS} are taken.")
    if directory > MAX_MEMBERS << 10 or tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        _refuse("size", f"The table of contents of {source} is larger than that of any bundle.")


def _check_mode(source: Path, name: str, mode: int) -> None:
    if stat.S_ISLNK(mode):
        _refuse("link", f"{name!r} in {source} is a link.")
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        _refuse("device", f"{name!r} in {source} is neither a plain file nor a folder.")


def _check_name(source: Path, name: str) -> None:
    """Refuse what is no plain relative path on every operating system."""
    parts = name.removesuffix("/").split("/")
    bad = [p for p in parts if p in {"", ".", ".."} or p.endswith((".", " ")) or _DEVICES.fullmatch(p)]
    if bad or _FORBIDDEN.search(name) or len(name) > 200:
        _refuse("path", f"{source} holds {name[:200]!r}, which is no plain path below its folder.")


def _check_distinct(source: Path, members: list[_Member]) -> None:
    """Refuse names that are one on a file system without case or with composed letters, and files used as folders."""
    files: dict[str, str] = {}
    for member in members:
        key = _key(member.name)
        if not member.folder and key in files:
            _refuse("duplicate", f"{source} holds {member.name!r} and {files[key]!r}, which are one name.")
        if not member.folder:
            files[key] = member.name
    for member in members:
        parts = _key(member.name).split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts) + member.folder)}
        if clash := above & set(files):
            _refuse("duplicate", f"{source} holds {member.name!r} below the file {files[clash.pop()]!r}.")


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name.removesuffix("/")).casefold()


def _write(source: Path, member: _Member, place: Path) -> None:
    left = member.size
    with member.open() as stream, place.open("xb") as out:
        while block := stream.read(_CHUNK):
            left -= len(block)
            if left < 0:
                _refuse("size", f"{member.name!r} in {source} is longer than the {member.size} bytes that it states.")
            out.write(block)
    if left:
        text = f"{member.name!r} in {source} has {left} bytes less than the {member.size} that it states."
        raise ModelRefused("archive-damaged", text, "Download or copy it again.")


def _refuse(code: str, text: str) -> NoReturn:
    raise ModelRefused(f"archive-{code}", text, _REMEDY)
