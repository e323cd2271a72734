"""A bundle from elsewhere into the user's models: checked in every respect, then there in one step, or not at all."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from MTMed3DCore.bundles.archive import MAX_BYTES, unpack
from MTMed3DCore.bundles.bundle import NAME_PATTERN, WEIGHTS, Bundle, read_bundle, verify
from MTMed3DCore.bundles.download import Download, check_address, download
from MTMed3DCore.bundles.manifest import MANIFEST, read_manifest
from MTMed3DCore.bundles.search import bundle_roots, user_models
from MTMed3DCore.bundles.writing import replace_folder
from MTMed3DCore.errors import ModelRefused, WrongUse
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.progress import Progress, silent

WORKPLACE = ".installing"
"""Folder among the models that holds downloads under way and bundles that are not checked yet."""
KEPT_S = 14 * 24 * 3600
"""A download that was broken off is kept so long for going on."""
TEXTS = frozenset({".json", ".md", ".txt", ""})
"""Of a bundle's files, by suffix; the one without is LICENSE."""
_PICTURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Installed:
    """What was installed.

    Args:
        bundle: where it now lies.
        sha256: of the archive that came, or None for a folder.
    """

    bundle: Bundle
    sha256: str | None


def install_bundle(
    source: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    name: str | None = None,
    overwrite: bool = False,
    root: Path | None = None,
    trusted: Path | None = None,
    progress: Progress = silent,
) -> Installed:
    """Install a model.

    Nothing of it is run, and nothing of it stands where models are looked for before every check has passed: hash and
    size of the archive, its members, the kinds of its files, the manifest's hashes, the header of the weights, and that
    the tensors fit the network.

    Args:
        source: ``https`` address or file of a zip or tar (plain or gzip), or a folder.
        sha256: expected hash of the archive, 64 hexadecimal digits, from a source other than the archive's.
        size: expected bytes of the archive.
        name: folder of the model and thereby its name in `find_bundle`; by default the bundle's own.
        overwrite: replace a model of this name among the user's.
        root: folder of models; by default the user's.
        trusted: PEM file of an authority to trust instead of those of the system, for a server inside a hospital.
        progress: told of the stages ``download``, ``unpack`` and ``verify``; whatever it raises ends the work.

    Raises:
        WrongUse: ``install-hash`` (no hash, or one for a folder), ``bundle-name``, ``model-exists``, ``model-shadowed``
            (another place has a model of this name and is looked into first), ``install-running``.
        ModelRefused: ``install-source`` (no such file), ``install-mismatch`` (another hash or size), what `download`
            and `unpack` refuse, ``archive-no-bundle``, ``bundle-file-kind``, what `verify` and `Bundle.load` refuse.
        OutOfResources: ``disk-full``.
    """
    _check_expectations(sha256, size, name)
    root = user_models() if root is None else root
    place = Path(source).expanduser().absolute() if isinstance(source, Path) or "://" not in source else None
    if place is None:
        check_address(str(source))
    elif not place.exists():
        raise ModelRefused("install-source", f"There is no {place}.", "Give a file, a folder or an https address.")
    elif place.is_dir() and (sha256 or size is not None):
        raise WrongUse("install-hash", f"{place} is a folder, which has no hash or size of its own.", "Leave it out.")
    if name is not None:
        _check_free(root, name, overwrite)
    work = root / WORKPLACE
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work / "lock", timeout=0):
            _sweep(work)
            return _install(source, place, work, root, sha256, size, name, overwrite, trusted, progress)
    except Timeout as error:
        text = f"Another installation into {root} is under way."
        raise WrongUse("install-running", text, "Wait until it has ended.") from error


def _install(
    source: str | Path,
    place: Path | None,
    work: Path,
    root: Path,
    sha256: str | None,
    size: int | None,
    name: str | None,
    overwrite: bool,
    trusted: Path | None,
    progress: Progress,
) -> Installed:
    fetched = None
    if place is None:
        fetched = Download(str(source), work, MAX_BYTES, size)
        place = download(fetched, trusted=trusted, progress=progress)
    try:
        found = None if place.is_dir() else _check_archive(place, str(source), sha256, size)
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=work) as unpacked:
            unpack(place, Path(unpacked), progress=progress)
            folder = _bundle_folder(Path(unpacked), place)
            bundle = _check_bundle(folder, progress)
            target = root / (name or bundle.name)
            _check_free(root, target.name, overwrite)
            folder.chmod(0o755)  # a temporary folder is private; a bundle may be shared
            replace_folder(folder, target)
    except ModelRefused:
        if fetched is not None:
            fetched.forget()  # what came whole and is refused would be refused again
        raise
    if fetched is not None:
        fetched.forget()
    return Installed(read_bundle(target), found)


def _check_expectations(sha256: str | None, size: int | None, name: str | None) -> None:
    if sha256 is not None and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise WrongUse("install-hash", f"{sha256!r} is no SHA-256.", "Give 64 hexadecimal digits.")
    if size is not None and size < 1:
        raise WrongUse("install-hash", f"The expected size is {size}.", "Give the archive's size in bytes.")
    if name is not None and not NAME_PATTERN.fullmatch(name):
        raise WrongUse("bundle-name", f"{name!r} is no name of a model.", "Use letters, digits, dot, dash, underscore.")


def _check_free(root: Path, name: str, overwrite: bool) -> None:
    """Refuse a name that is taken, or that would find another model."""
    for other in bundle_roots():
        if other.absolute() == root.absolute():
            break
        if (other / name / MANIFEST).is_file():
            text = f"The model {name!r} in {other} would be found before the new one."
            raise WrongUse("model-shadowed", text, "Install it under another name.")
    if (root / name).exists() and not overwrite:
        text = f"There is a model {name!r} in {root} already."
        raise WrongUse("model-exists", text, "Install it under another name, or ask for the old one to be replaced.")


def _check_archive(archive: Path, shown: str, sha256: str | None, size: int | None) -> str:
    """The archive's SHA-256, after comparing it and the size with what is expected."""
    remedy = "Do not use it. Check the expectation, and where the file came from."
    has = archive.stat().st_size
    if size is not None and has != size:
        raise ModelRefused("install-mismatch", f"{shown} has {has} bytes; {size} are expected.", remedy)
    found = file_sha256(archive)
    if sha256 is not None and found != sha256.lower():
        raise ModelRefused("install-mismatch", f"{shown} has SHA-256 {found}; expected is {sha256.lower()}.", remedy)
    return found


def _bundle_folder(unpacked: Path, source: Path) -> Path:
    """Where the bundle lies among what was unpacked: there, or in the only folder."""
    entries = list(unpacked.iterdir())
    for folder in (unpacked, *(entries if len(entries) == 1 else ())):
        if (folder / MANIFEST).is_file():
            # The outermost folder belongs to whoever removes it, so a bundle that lies in it moves one down.
            return folder if folder != unpacked else _moved_down(unpacked, entries)
    text = f"{source} holds no bundle: there is no {MANIFEST} in it or in its only folder."
    raise ModelRefused("archive-no-bundle", text, "Pack the folder that holds configs, models and docs.")


def _moved_down(unpacked: Path, entries: list[Path]) -> Path:
    inner = Path(tempfile.mkdtemp(prefix="bundle-", dir=unpacked))
    for entry in entries:
        entry.rename(inner / entry.name)
    return inner


def _check_bundle(folder: Path, progress: Progress) -> Bundle:
    progress("verify", 0.0, "Checking every file")
    for name in read_manifest(folder):
        _check_kind(folder, name)
    bundle = read_bundle(folder)
    verify(bundle)
    progress("verify", 0.5, "Fitting the weights to the network")
    bundle.load("cpu")
    progress("verify", 1.0, f"{bundle.name} {bundle.version}")
    return bundle


def _check_kind(folder: Path, name: str) -> None:
    """Refuse files that are neither weights in safetensors, nor text, nor a picture, by name and by content."""
    path = folder / name
    good = name == WEIGHTS or path.suffix.lower() in TEXTS or path.suffix.lower() == ".png"
    if good and name != WEIGHTS and path.is_file():
        content = path.read_bytes() if path.stat().st_size <= 1 << 24 else b"\0"
        good = content.startswith(_PICTURE) if path.suffix.lower() == ".png" else _is_text(content)
    if not good:
        text = f"The bundle holds {name}, which is neither its weights in safetensors nor text nor a picture."
        raise ModelRefused("bundle-file-kind", text, "Remove it; code and pickled files are never read.")


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _sweep(work: Path) -> None:
    """Remove what an installation left that was killed, and downloads that nobody went on with."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != "lock" and time.time() - path.stat().st_mtime > KEPT_S:
            path.unlink(missing_ok=True)
