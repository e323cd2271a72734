"""Which four of many series make up the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from MTMed3DCore.dicom.series import Series
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.notice import Notice
from MTMed3DCore.sequences import NAMES, SEQUENCES

CLEARLY_FINER = 0.6
"""A series is preferred to others of its sequence when its voxels are at most this share of theirs."""
_REMEDY = "Look at `mtmed3d series FOLDER` and name the series with --series, for example --series t1ce=7."


@dataclass(frozen=True, eq=False)
class Choice:
    """The four series of a study.

    Args:
        series: by sequence, in the order of `SEQUENCES`.
        notices: what the reader must know about the choice.
    """

    series: Mapping[str, Series]
    notices: tuple[Notice, ...] = ()


def choose(found: Sequence[Series], named: Mapping[str, str] | None = None) -> Choice:
    """The T1, T1ce, T2 and FLAIR among the series of one study.

    Where several series are the same sequence, one whose voxels are clearly finer, or else the only axial one, is
    taken and a notice names the others; anything less clear is refused.

    Args:
        found: what `scan` returned.
        named: number of the series for some sequences, chosen by the user, for example ``{"t1ce": "7"}``.

    Raises:
        WrongUse: `named` names a series that is not there, or one that is two.
        InputRefused: ``several-studies``, ``sequence-missing`` or ``sequence-ambiguous``; or the fault of the geometry
            of the only series of a sequence.
    """
    named = named or {}
    chosen: dict[str, Series] = {name: _named(found, name, key) for name, key in named.items()}
    taken = {id(series) for series in chosen.values()}
    rest = [series for series in found if id(series) not in taken]
    candidates = {name: [s for s in rest if s.verdict.sequence == name] for name in SEQUENCES if name not in chosen}
    _refuse_studies([*chosen.values(), *(series for several in candidates.values() for series in several)])
    notices: list[Notice] = []
    for name, several in candidates.items():
        chosen[name] = _one(name, several, rest, notices)
    for series in chosen.values():
        if series.copies:
            text = f"{series.copies} files of series {series.name} were there twice; the copies were left out."
            notices.append(Notice("files-twice", text))
    notices += _frame_notices(chosen)
    for name in SEQUENCES:
        if chosen[name].fault is not None:
            raise chosen[name].fault or AssertionError
    return Choice({name: chosen[name] for name in SEQUENCES}, tuple(notices))


def _named(found: Sequence[Series], name: str, key: str) -> Series:
    if name not in SEQUENCES:
        raise WrongUse("series-name", f"There is no sequence {name!r}.", f"Use {', '.join(SEQUENCES)}.")
    wanted = key.strip().lower()
    hits = [s for s in found if wanted in (s.key, s.header.series_uid) and s.frames]
    if len(hits) == 1:
        return hits[0]
    there = ", ".join(s.key for s in found if s.frames)
    text = f"No series has the number {key}" if not hits else f"{len(hits)} series have the number {key}"
    raise WrongUse("series-unknown", f"{text} ({name}); there are: {there}.", "Look at `mtmed3d series FOLDER`.")


def _refuse_studies(series: Sequence[Series]) -> None:
    studies = {s.header.study_uid: s.header.study_date or "without date" for s in series}
    if len(studies) > 1:
        dates = ", ".join(sorted(studies.values()))
        text = f"The folder holds {len(studies)} studies of the patient ({dates})."
        raise InputRefused("several-studies", text, "Give the folder of one study, or the series with --series.")


def _one(name: str, several: Sequence[Series], rest: Sequence[Series], notices: list[Notice]) -> Series:
    usable = [series for series in several if series.fault is None]
    if not several:
        unsure = [s for s in rest if name in s.verdict.candidates and s.verdict.sequence is None]
        if unsure:
            text = f"No series is surely the {NAMES[name]}; it may be {_list(unsure)}."
            raise InputRefused("sequence-ambiguous", text, _REMEDY)
        seen = _list([s for s in rest if s.frames]) or "nothing"
        text = f"No series is the {NAMES[name]} (there are: {seen})."
        raise InputRefused("sequence-missing", text, _REMEDY)
    if not usable:
        fault = several[0].fault
        raise fault if fault is not None else AssertionError
    if len(usable) == 1:
        chosen, reason = usable[0], "the only one that can be used"
    else:
        chosen, reason = _preferred(name, usable)
    others = [series for series in several if series is not chosen]
    if others:
        text = f"Of several {NAMES[name]}, series {chosen.name} was taken ({reason}); not used: {_list(others)}."
        notices.append(Notice("sequence-several", text))
    return chosen


def preferred(shapes: Sequence[tuple[float, str]]) -> tuple[int, str] | None:
    """Which of several series of one sequence is clearly the one to take, and why; None where none is.

    Args:
        shapes: volume of a voxel, in whatever unit, and plane (``axial``, ``coronal``, ``sagittal``) of each.
    """
    finest = sorted(range(len(shapes)), key=lambda index: shapes[index][0])
    volumes = [shapes[index][0] for index in finest]
    if len(shapes) == 1 or volumes[0] <= CLEARLY_FINER * volumes[1]:
        return finest[0], "its voxels are the smallest"
    rivals = [index for index, volume in zip(finest, volumes, strict=True) if volumes[0] > CLEARLY_FINER * volume]
    axial = [index for index in rivals if shapes[index][1] == "axial"]
    return (axial[0], "the only axial one of comparable voxels") if len(axial) == 1 else None


def _preferred(name: str, several: Sequence[Series]) -> tuple[Series, str]:
    found = preferred([(series.stack.grid.voxel_volume_ml, series.plane) for series in several])
    if found is None:
        text = f"Several series are the {NAMES[name]} alike: {_list(several)}."
        raise InputRefused("sequence-ambiguous", text, _REMEDY)
    return several[found[0]], found[1]


def _frame_notices(chosen: Mapping[str, Series]) -> list[Notice]:
    reference = chosen["t1ce"].header.frame_uid
    apart = [NAMES[n] for n in SEQUENCES if chosen[n].header.frame_uid and chosen[n].header.frame_uid != reference]
    if not reference or not apart:
        return []
    text = f"The scanner gives {', '.join(apart)} another frame of reference than the T1ce: the patient was moved."
    return [Notice("frames-differ", text)]


def _list(series: Sequence[Series]) -> str:
    return ", ".join(f"{s.name} ({_size(s)})" for s in series)


def _size(series: Series) -> str:
    if not series.frames:
        return series.verdict.text
    spacing = series.frames[0].spacing
    return f"{series.plane}, {len(series.frames)} slices, {np.round(spacing[0], 2):g} mm in plane"
