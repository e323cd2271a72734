"""Which file of a folder is T1, T1ce, T2 or FLAIR, by name.

Understands the names of BraTS 2013 to 2023 and plain ones. Headers, descriptions and the image itself are not looked
at.
"""

from __future__ import annotations

import re
from pathlib import Path

from MTMed3DCore.errors import InputRefused

SEQUENCES = ("t1", "t1ce", "t2", "flair")
"""Order of the sequences everywhere in this package."""
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Files that can be read, longest suffix first."""

# Tried in this order on the words of a file name; the enhanced T1 comes before the plain one, whose name it contains.
_PATTERNS = {
    "flair": r"flair|t2f|fla|t2flair",
    "t1ce": r"t1ce|t1c|t1gd|t1post|t1km|t1contrast|t1wce|t1wc",
    "t1": r"t1|t1n|t1w|t1pre|t1native",
    "t2": r"t2|t2w",
}
_JOINED = re.compile(r"(t[12])[ _.\-]+(ce|gd|post|contrast|km|flair|pre|native)(?![a-z])")
_LABEL = re.compile(r"(?<![a-z])(seg|mask|label|labels|brainmask|segmentation|fusion|ot)(?![a-z])")


def stem(path: Path) -> str:
    """The file name without its suffix, in lower case."""
    name = path.name.lower()
    suffix = next((s for s in SUFFIXES if name.endswith(s)), path.suffix)
    return name.removesuffix(suffix)


def sequence_of(path: Path) -> str | None:
    """The sequence that a file name names, or None for a label map or an unknown name.

    The last word that names a sequence decides, since prefixes may hold anything.
    """
    name = _JOINED.sub(r"\1\2", stem(path))
    words = re.split(r"[^a-z0-9]+", name)
    if _LABEL.search(name):
        return None
    for word in reversed(words):
        for sequence, pattern in _PATTERNS.items():
            if re.fullmatch(pattern, word):
                return sequence
    return None


def find_sequences(folder: str | Path) -> dict[str, Path]:
    """The four files of a study in a folder.

    Raises:
        InputRefused: no such folder, or a sequence that no file or more than one file names.
    """
    place = Path(folder)
    if not place.is_dir():
        what = "is a file" if place.exists() else "does not exist"
        raise InputRefused("folder-missing", f"{place} {what}.", "Give a folder, or four files with --t1 and so on.")
    files = sorted(p for p in place.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
    found: dict[str, list[Path]] = {sequence: [] for sequence in SEQUENCES}
    for path in files:
        sequence = sequence_of(path)
        if sequence is not None:
            found[sequence].append(path)
    seen = ", ".join(p.name for p in files) or "no image at all"
    for sequence, paths in found.items():
        if not paths:
            raise InputRefused(
                "sequence-missing",
                f"{place} holds no {sequence} (it holds: {seen}).",
                f"Name the file {sequence}.nii.gz, or give the four files with --t1, --t1ce, --t2 and --flair.",
            )
        if len(paths) > 1:
            raise InputRefused(
                "sequence-ambiguous",
                f"{place} holds several {sequence}: {', '.join(p.name for p in paths)}.",
                "Give the four files with --t1, --t1ce, --t2 and --flair.",
            )
    return {sequence: paths[0] for sequence, paths in found.items()}
