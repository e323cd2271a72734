"""Which series or file is T1, T1ce, T2 or FLAIR.

`identify` is the one function for it: DICOM series, files in a folder and the volumes of a 3D Slicer scene all go
through it. What it looks at stands in `MTMed3DCore.recognition`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.recognition.header import Evidence, SeriesHeader, read_header
from MTMed3DCore.recognition.words import Words, read_words

SEQUENCES = ("t1", "t1ce", "t2", "flair")
"""Order of the sequences everywhere in this package."""
NAMES = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "FLAIR"}
"""How the sequences are written for a reader."""
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Files that can be read, longest suffix first."""

# Words that research data sets end their file names with.
_PATTERNS = {
    "flair": r"flair|t2f|fla|t2flair",
    "t1ce": r"t1ce|t1c|t1gd|t1post|t1km|t1contrast|t1wce|t1wc",
    "t1": r"t1|t1n|t1w|t1pre|t1native",
    "t2": r"t2|t2w",
}
_JOINED = re.compile(r"(t[12])[ _.\-]+(ce|gd|post|contrast|km|flair|pre|native)(?![a-z])")
_LABEL = re.compile(r"(?<![a-z])(seg|mask|label|labels|brainmask|segmentation|fusion|ot)(?![a-z])")


@dataclass(frozen=True)
class Verdict:
    """What a series is taken for, and why.

    Args:
        sequence: of `SEQUENCES`; None where it is none of them or where it is not decided.
        candidates: the sequences that it may be where it is not decided; empty where nothing is known.
        aside: why it is none of the four, for example ``"diffusion"``; empty otherwise.
        reasons: what was seen, for a person.
    """

    sequence: str | None = None
    candidates: tuple[str, ...] = ()
    aside: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """One phrase for a table: ``T1ce``, ``T1 or T1ce?``, ``not used: diffusion``, ``unknown``."""
        if self.sequence:
            return NAMES[self.sequence]
        if self.aside:
            return f"not used: {self.aside}"
        return " or ".join(NAMES[name] for name in self.candidates) + "?" if self.candidates else "unknown"


def identify(description: str = "", *, header: SeriesHeader | None = None, file_name: str = "") -> Verdict:
    """What a series is, from its header, then its description, then its file name.

    A source that contradicts another makes the verdict undecided, with the candidates of both; nothing is guessed. A
    T1 for which nobody mentions contrast agent is taken for the plain one, and the reasons say so.

    Args:
        description: series description, as shown by a viewer; by default that of the header, then its protocol name.
        header: acquisition parameters, where they are known.
        file_name: name without folder and suffix.
    """
    evidence = read_header(header) if header else Evidence()
    if evidence.aside and evidence.firm:
        return Verdict(aside=evidence.aside, reasons=(evidence.reason,))
    texts = [description, *((header.description, header.protocol) if header else ()), file_name]
    readings = [(text, read_words(text)) for text in dict.fromkeys(text.strip() for text in texts) if text]
    text, words = next(((t, w) for t, w in readings if w.weightings or w.aside), (readings or [("", Words())])[0])
    reasons = tuple(part for part in (f'named "{text}"' if text else "", evidence.reason) if part)
    if words.aside:
        return Verdict(aside=words.aside, reasons=reasons)
    if evidence.aside:
        if not words.weightings:
            return Verdict(aside=evidence.aside, reasons=reasons)
        named = _with_contrast(words.weightings)
        return Verdict(candidates=named, reasons=(*reasons, f"but its parameters are those of {evidence.aside}"))
    return _decide(words, evidence, reasons)


def _decide(words: Words, evidence: Evidence, reasons: tuple[str, ...]) -> Verdict:
    named, measured = words.weightings, evidence.weightings
    possible = named & measured if named and measured else named | measured
    if named and measured and not possible:
        reasons = (*reasons, "name and parameters contradict each other")
        return Verdict(candidates=_with_contrast(named | measured), reasons=reasons)
    if len(possible) != 1:
        return Verdict(candidates=_with_contrast(possible), reasons=reasons)
    (weighting,) = possible
    if weighting != "t1":
        return Verdict(weighting, (weighting,), reasons=reasons)
    if words.contradictory or (words.contrast is False and evidence.contrast):
        return Verdict(candidates=("t1", "t1ce"), reasons=(*reasons, "before or after contrast agent is contradictory"))
    if words.contrast or evidence.contrast:
        return Verdict("t1ce", ("t1ce",), reasons=reasons)
    silent = () if words.contrast is False else ("no contrast agent mentioned",)
    return Verdict("t1", ("t1",), reasons=(*reasons, *silent))


def _with_contrast(weightings: frozenset[str]) -> tuple[str, ...]:
    """Every sequence of these weightings, in the order of `SEQUENCES`."""
    wanted = weightings | ({"t1ce"} if "t1" in weightings else set())
    return tuple(name for name in SEQUENCES if name in wanted)


def stem(path: Path) -> str:
    """The file name without its suffix, in lower case."""
    name = path.name.lower()
    suffix = next((s for s in SUFFIXES if name.endswith(s)), path.suffix)
    return name.removesuffix(suffix)


def sequence_of(path: Path) -> str | None:
    """The sequence that a file name names, or None for a label map, an unknown or an undecided name.

    A name that ends with the word of a research data set (``..._t1ce``, ``...-t2f``) is that sequence, whatever stands
    before; any other name is read as a series description.
    """
    name = stem(path)
    if _LABEL.search(name):
        return None
    words = re.split(r"[^a-z0-9]+", _JOINED.sub(r"\1\2", name))
    while words and (words[-1].isdigit() or not words[-1]):
        words.pop()
    last = words[-1] if words else ""
    ending = next((s for s, pattern in _PATTERNS.items() if re.fullmatch(pattern, last)), None)
    described = identify(name).sequence
    if ending == "t1" and described == "t1ce":
        return None if last in ("t1", "t1w") else ending
    return ending or described


def holds_dicom(folder: Path) -> bool:
    """Whether a folder is to be read as DICOM: it holds DICOM files and none that `SUFFIXES` names."""
    if not folder.is_dir() or any(path.name.lower().endswith(SUFFIXES) for path in folder.rglob("*")):
        return False
    from MTMed3DCore.dicom.scanning import looks_like_dicom

    return looks_like_dicom(folder)


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
