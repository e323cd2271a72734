"""Which series lie in a folder: every file's header is read, pixels are not."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from MTMed3DCore.dicom.datasets import KIND_NAMES, frames_of, header_of, is_image, kind_of, patient_of
from MTMed3DCore.dicom.series import Series
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SUFFIXES

MAGIC = b"DICM"
"""What stands after the preamble of 128 bytes of every DICOM file."""
_NEVER = (*SUFFIXES, ".json", ".txt", ".csv", ".html", ".png", ".jpg", ".pdf", ".zip", ".gz", ".xml", ".py")


def looks_like_dicom(folder: str | Path, limit: int = 200) -> bool:
    """Whether one of the first files of a folder, at any depth, is DICOM."""
    for number, path in enumerate(_files([Path(folder)])):
        if number >= limit:
            break
        if _has_magic(path) or _bare(path):
            return True
    return False


def scan(places: str | Path | Sequence[str | Path], progress: Progress = silent) -> tuple[Series, ...]:
    """Every series of one patient's folder or folders, at any depth.

    Files that are not DICOM are passed over. Frames are grouped by series, and within a series by orientation, size,
    echo, time point and kind of image, so that every result is one stack of slices.

    Raises:
        WrongUse: pydicom is not installed.
        InputRefused: ``folder-missing``, ``dicom-none``, ``several-patients``, or ``file-damaged`` where a header ends
            early.
    """
    _need_pydicom()
    roots = [Path(place) for place in ([places] if isinstance(places, str | Path) else places)]
    for root in roots:
        if not root.exists():
            raise InputRefused("folder-missing", f"{root} does not exist.", "Give a folder of DICOM files.")
    paths = list(_files(roots))
    groups: dict[tuple[Any, ...], list[tuple[Any, Path]]] = defaultdict(list)
    patients: dict[tuple[str, ...], Path] = {}
    seen: set[str] = set()
    copies: dict[str, int] = defaultdict(int)
    for number, path in enumerate(paths):
        if number % 50 == 0:
            progress("read", 0.5 * number / max(len(paths), 1), f"Reading header {number + 1} of {len(paths)}")
        dataset = _read_header(path)
        if dataset is None:
            continue
        try:
            patients.setdefault(patient_of(dataset), path)
            # The position too, because careless anonymisers give every slice the same identifier.
            uid = f"{dataset.get('SOPInstanceUID', path)} {dataset.get('ImagePositionPatient')}"
            series_uid = str(dataset.get("SeriesInstanceUID", ""))
        except Exception as error:  # pydicom makes values of bytes only now
            raise _damaged(path, error) from error
        if len(patients) > 1:
            _refuse_patients(list(patients.values()))
        if uid in seen:
            copies[series_uid] += 1
            continue
        seen.add(uid)
        groups[(series_uid,)].append((dataset, path))
    if not groups:
        what = ", ".join(str(root) for root in roots)
        raise InputRefused("dicom-none", f"{what} holds no DICOM image.", "Give the folder of a DICOM export.")
    found = [
        replace(series, copies=copies[series.header.series_uid])
        for members in groups.values()
        for series in _divide(members)
    ]
    return tuple(sorted(found, key=lambda s: (s.header.study_date, s.header.number or 0, s.header.series_uid, s.part)))


def _need_pydicom() -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        remedy = "Install it with `pip install 'mtmed3d[dicom]'`."
        raise WrongUse("dicom-support", "Reading DICOM needs the package pydicom.", remedy) from error


def _files(roots: Iterable[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_file():
            yield root
            continue
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                if not name.startswith(".") and name != "DICOMDIR" and not name.lower().endswith(_NEVER):
                    yield Path(folder) / name


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == MAGIC
    except OSError:
        return False


def _bare(path: Path) -> bool:
    """Whether a file without preamble starts with an element of group 8, as old archives write DICOM."""
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
    except OSError:
        return False
    return start[:2] == b"\x08\x00" and start[2:4] in (b"\x00\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00", b"\x18\x00")


def _read_header(path: Path) -> Any | None:
    """The header of a DICOM object of a series, or None for anything else."""
    import pydicom

    if not (_has_magic(path) or _bare(path)):
        return None
    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        return dataset if dataset.get("SOPClassUID") and dataset.get("SeriesInstanceUID") else None
    except Exception as error:  # pydicom raises whatever its parts raise
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputRefused:
    return InputRefused("file-damaged", f"{path} is damaged: {error}.", "Copy or export it again.")


def _refuse_patients(files: Sequence[Path]) -> None:
    # Folder and file names are the user's own; names and numbers of the header are not shown.
    examples = " and ".join(str(path) for path in files[:2])
    text = f"The files belong to more than one patient, for example {examples}."
    raise InputRefused("several-patients", text, "Give a folder with one patient's study.")


def _divide(members: Sequence[tuple[Any, Path]]) -> list[Series]:
    """The stacks of one DICOM series."""
    first = members[0][0]
    if not is_image(first):
        try:
            header = header_of(first)
        except Exception as error:
            raise _damaged(members[0][1], error) from error
        return [Series(header, (), problem=KIND_NAMES.get(kind_of(first), "no image"), files=_paths(members))]
    parts: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    owners: dict[tuple[Any, ...], Any] = {}
    unplaced = []
    for dataset, path in members:
        try:
            described = list(frames_of(dataset, path))
        except Exception as error:  # pydicom makes values of bytes only now
            raise _damaged(path, error) from error
        for key, frame, dataset_of_frame in described:
            if frame is None:
                unplaced.append(path)
                continue
            parts[key].append(frame)
            owners.setdefault(key, dataset_of_frame)
    found = []
    for number, key in enumerate(sorted(parts, key=str)):
        part = "" if len(parts) == 1 else _letters(number)
        frames = tuple(parts[key])
        problem = _repeated(frames)
        found.append(Series(owners[key], frames, part, problem=problem, files=tuple({f.path: None for f in frames})))
    if not found:
        found.append(Series(header_of(first), (), problem="no position in space", files=tuple(unplaced)))
    return found


def _paths(members: Sequence[tuple[Any, Path]]) -> tuple[Path, ...]:
    return tuple(path for _, path in members)


def _letters(number: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def _repeated(frames: Sequence[Any]) -> str:
    """Several whole volumes at the same positions, as perfusion and diffusion have them."""
    counts: dict[tuple[float, ...], int] = defaultdict(int)
    for frame in frames:
        counts[tuple(frame.position.round(2))] += 1
    times = set(counts.values())
    if len(times) == 1 and (count := times.pop()) > 1 and len(counts) > 1:
        return f"{count} images at every position"
    return ""
