"""A study: four sequences of one head, all on the T1ce grid, refused with a reason where they are not that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import combinations, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.geometry import Grid
from MTMed3DCore.notice import Notice
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.recognition.image import contradictions
from MTMed3DCore.sequences import SEQUENCES, find_sequences, holds_dicom, stem
from MTMed3DCore.volume import Volume, read_volume, refuse_missing, resample

if TYPE_CHECKING:
    from MTMed3DCore.dicom import Series

REFERENCE = "t1ce"
"""The sequence whose grid the study and every result take."""
SMALLEST_OVERLAP = 0.25
"""Share of the T1ce field of view that every other sequence must cover."""


@dataclass(frozen=True, eq=False)
class Study:
    """Four sequences on one grid.

    Args:
        id: name of the study: its folder or the common part of its file names; never a header's patient name.
        sequences: volumes by name, in the order of `SEQUENCES`, all on the T1ce grid as it came in.
        sources: the files.
        warnings: what reading noticed.
        series: the DICOM series of each sequence, where the study came as DICOM: what exported objects refer to.
        scanned: the same volumes as the scanner made them, each on its own grid; empty where that is not known. What
            the preparation interpolates from, so that no voxel is interpolated twice.
        deidentified: whether nothing that is written of it may name the patient; see `exports.deidentify`.
    """

    id: str
    sequences: Mapping[str, Volume]
    sources: Mapping[str, Path] = field(default_factory=dict)
    warnings: tuple[Notice, ...] = ()
    series: Mapping[str, Series] = field(default_factory=dict)
    scanned: Mapping[str, Volume] = field(default_factory=dict)
    deidentified: bool = False

    @property
    def grid(self) -> Grid:
        """The T1ce grid as it came in."""
        return self.sequences[REFERENCE].grid

    def array(self) -> npt.NDArray[np.float32]:
        """Intensities (4, X, Y, Z) in the order of `SEQUENCES`."""
        return np.stack([self.sequences[name].array for name in SEQUENCES]).astype(np.float32, copy=False)

    @classmethod
    def read(
        cls,
        case: str | Path | Sequence[str | Path] | None = None,
        *,
        t1: str | Path | None = None,
        t1ce: str | Path | None = None,
        t2: str | Path | None = None,
        flair: str | Path | None = None,
        series: Mapping[str, str] | None = None,
        progress: Progress = silent,
    ) -> Study:
        """Read a study from a folder, or from four files.

        A folder without image files is searched for DICOM series; `series` names those that the choice shall not be
        left to, by number, for example ``{"t1ce": "7"}``. Several folders together are one DICOM study.

        Sequences on other grids of the same head are brought to the T1ce grid in one linear interpolation, and a
        warning says so.

        Raises:
            WrongUse: a folder and files together, or neither.
            InputRefused: a file that `read_volume` or a set of files that `find_sequences` refuses; a sequence missing
                or given twice; sequences that do not overlap in space.
        """
        given = {"t1": t1, "t1ce": t1ce, "t2": t2, "flair": flair}
        files = {name: Path(path).expanduser() for name, path in given.items() if path is not None}
        if (not case) == (not files):
            raise WrongUse("study-arguments", "Give either a folder or the four files.", "See --help.")
        folders = [Path(place).expanduser() for place in ([case] if isinstance(case, str | Path) else case or ())]
        if folders:
            if series or len(folders) > 1 or holds_dicom(folders[0]):
                return cls._read_dicom(folders, series, progress)
            files = find_sequences(folders[0])
        for name in SEQUENCES:
            if name not in files:
                raise InputRefused("sequence-missing", f"The {name} is missing.", f"Give its file with --{name}.")
        for path in files.values():
            refuse_missing(path)
        _refuse_same_file(files)
        progress("read", 0.0, "Reading four sequences")
        with ThreadPoolExecutor(len(SEQUENCES)) as pool:
            volumes = dict(zip(SEQUENCES, pool.map(lambda name: read_volume(files[name]), SEQUENCES), strict=True))
        _refuse_same_pixels(volumes, files)
        name = folders[0].resolve().name if folders else _study_name(files)
        study = cls.from_volumes(name, volumes, {name: files[name] for name in SEQUENCES})
        progress("read", 1.0, "Read")
        return study

    @classmethod
    def _read_dicom(cls, folders: Sequence[Path], named: Mapping[str, str] | None, progress: Progress) -> Study:
        from MTMed3DCore.dicom.studying import read_dicom

        read = read_dicom(folders, named, progress)
        _refuse_same_pixels(read.volumes, read.sources)
        study = cls.from_volumes(folders[0].resolve().name, read.volumes, read.sources)
        progress("read", 1.0, "Read")
        return replace(study, warnings=(*read.notices, *study.warnings), series=read.series)

    @classmethod
    def from_volumes(cls, name: str, volumes: Mapping[str, Volume], sources: Mapping[str, Path]) -> Study:
        """A study from volumes in one frame of reference, each on its own grid.

        Raises:
            InputRefused: a sequence that does not overlap the T1ce.
        """
        reference = volumes[REFERENCE].grid
        warnings: list[Notice] = []
        aligned: dict[str, Volume] = {}
        for sequence in SEQUENCES:
            volume = volumes[sequence]
            if volume.grid.same_as(reference):
                aligned[sequence] = Volume(volume.array, reference)
                continue
            covered = _coverage(volume.grid, reference)
            if covered < SMALLEST_OVERLAP:
                raise InputRefused(
                    "no-overlap",
                    f"{sources.get(sequence, sequence)} covers {covered:.0%} of the field of view of the {REFERENCE}.",
                    "Check that both belong to one examination, or register them first.",
                )
            aligned[sequence] = resample(volume, reference)
            voxels = " × ".join(str(size) for size in volume.grid.shape)
            spacing = " × ".join(f"{size:.3g}" for size in volume.grid.spacing)
            text = f"The {sequence} ({voxels} voxels of {spacing} mm) lies on another grid than the {REFERENCE}."
            warnings.append(Notice("resampled", text))
        warnings += contradictions(volumes)
        return cls(name, aligned, dict(sources), tuple(warnings), scanned={name: volumes[name] for name in SEQUENCES})


def _refuse_same_file(files: Mapping[str, Path]) -> None:
    for a, b in combinations(SEQUENCES, 2):
        if files[a].resolve() == files[b].resolve():
            raise InputRefused("sequence-twice", f"{files[a]} is given as {a} and as {b}.", "Give each its own file.")


def _refuse_same_pixels(volumes: Mapping[str, Volume], files: Mapping[str, Path]) -> None:
    for a, b in combinations(SEQUENCES, 2):
        if np.array_equal(volumes[a].array, volumes[b].array):
            raise InputRefused(
                "sequence-twice",
                f"{files[a]} ({a}) and {files[b]} ({b}) hold the same image.",
                "Find the missing sequence; one image cannot stand for two.",
            )


def _coverage(grid: Grid, reference: Grid, samples: int = 24) -> float:
    """Share of a lattice of points over the reference's field of view that lies inside `grid`."""
    sides: list[npt.NDArray[Any]] = [np.linspace(-0.5, n - 0.5, samples) for n in reference.shape]
    points = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 3)
    voxels = grid.to_voxel(reference.to_world(points))
    return float(((voxels >= -0.5) & (voxels <= np.asarray(grid.shape) - 0.5)).all(axis=1).mean())


def _study_name(files: Mapping[str, Path]) -> str:
    """The common beginning of the file names, or the folder's name where they share none."""
    letters = zip(*(stem(files[name]) for name in SEQUENCES), strict=False)
    common = "".join(same[0] for same in takewhile(lambda each: len(set(each)) == 1, letters)).rstrip("_-. ")
    if len(common) > 1 and common not in ("t1", "t2"):
        return common
    return files[REFERENCE].resolve().parent.name or "study"
