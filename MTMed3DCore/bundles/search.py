"""Where bundles lie, and which one a name means."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from MTMed3DCore.bundles.bundle import NAME_PATTERN, Bundle, read_bundle
from MTMed3DCore.bundles.manifest import MANIFEST
from MTMed3DCore.errors import ModelRefused

STARTER = "starter"
"""The bundle that travels with the package."""
MODELS_VARIABLE = "MTMED3D_MODELS"
_PACKAGE = Path(__file__).resolve().parent.parent


def user_models() -> Path:
    """The user's own bundle folder, by the custom of the operating system."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    return base / "mtmed3d" / "models"


def bundle_roots() -> tuple[Path, ...]:
    """Folders of bundles in the order of the search.

    First what `MODELS_VARIABLE` names (several are separated as in PATH), then ``Resources/bundles`` beside the package
    (a checkout, and Slicer's module folder), then the copy inside an installed wheel, then the user's own folder.
    """
    named = [Path(entry).expanduser() for entry in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if entry]
    beside = _PACKAGE.parent / "Resources" / "bundles"
    inside = _PACKAGE / "_resources" / "bundles"
    return (*named, beside, inside, user_models())


def find_bundle(name_or_folder: str | Path) -> Bundle:
    """The bundle of a name, or the one in a folder.

    A `Path`, or a text with a path separator, is a folder. A bare name is looked up in `bundle_roots` first and is a
    folder of the working directory only where no root has it, so that no stray folder can replace an installed model.

    Raises:
        ModelRefused: there is none; or the first one found is damaged, which never falls through to another.
    """
    if isinstance(name_or_folder, Path) or _is_path(name_or_folder):
        return read_bundle(Path(name_or_folder))
    if NAME_PATTERN.fullmatch(name_or_folder):
        for root in (*bundle_roots(), Path.cwd()):
            if (root / name_or_folder / MANIFEST).is_file():
                return read_bundle(root / name_or_folder)
    known = ", ".join(sorted({folder.name for folder in _bundle_folders()})) or "none"
    raise ModelRefused(
        "model-unknown",
        f"There is no model {name_or_folder!r}; known are: {known}.",
        f"Give a known name or a bundle's folder. Looked in {', '.join(map(str, bundle_roots()))}.",
    )


def list_bundles() -> list[Bundle]:
    """Every readable bundle of `bundle_roots`; of two with the same folder name only the one that a search finds."""
    found: list[Bundle] = []
    for folder in _bundle_folders():
        try:
            found.append(read_bundle(folder))
        except ModelRefused:
            continue  # `mtmed3d model verify NAME` gives the reason; a list must not fail for one bad entry
    return found


def _bundle_folders() -> list[Path]:
    """One folder per name, the first in the order of the search."""
    folders: dict[str, Path] = {}
    for root in bundle_roots():
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if (folder / MANIFEST).is_file():
                folders.setdefault(folder.name, folder)
    return list(folders.values())


def _is_path(text: str) -> bool:
    return os.sep in text or (os.altsep is not None and os.altsep in text) or text.startswith(("~", ".")) or not text
