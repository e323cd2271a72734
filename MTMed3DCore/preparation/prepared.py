"""The prepared study: what the network sees, with the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation.brain import find_stripped_brain
from MTMed3DCore.preparation.grid import resample_axes, resample_rigid, working_grid
from MTMed3DCore.preparation.masking import BrainMask, find_mask
from MTMed3DCore.preparation.normalise import normalise
from MTMed3DCore.preparation.record import PreparationRecord, Registration
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.volume import Volume, to_sitk

if TYPE_CHECKING:
    from SimpleITK import Image

    from MTMed3DCore.study import Study

REFERENCE = "t1ce"
ENOUGH_AGREEMENT = 0.85
"""Overlap of the sequences' own brains in a skull-stripped study from which they are taken for registered."""
ENOUGH_COVERED = 0.97
"""Share of the brain that every sequence must show; less is said in a notice."""


@dataclass(frozen=True, eq=False)
class PreparedStudy:
    """A study on the working grid.

    Args:
        image: float32 (4, X, Y, Z) in the order of `MTMed3DCore.sequences.SEQUENCES`, zero outside the brain, and
            normalised unless nobody wanted that.
        brain: bool (X, Y, Z) on `grid`.
        grid: the working grid: isotropic, axes nearest to R, A, S, cropped to the brain.
        native: the T1ce grid as it came in.
        stripped: whether the study came skull-stripped.
        warnings: what the preparation noticed.
        record: what was done, to be written down; None for one that was not made by `prepare`.
    """

    image: npt.NDArray[np.float32]
    brain: npt.NDArray[np.bool_]
    grid: Grid
    native: Grid
    stripped: bool
    warnings: tuple[Notice, ...] = ()
    record: PreparationRecord | None = None


def prepare(
    study: Study,
    *,
    spacing_mm: float,
    normalisation: str | None = "zscore_brain",
    progress: Progress = silent,
    mask: npt.NDArray[np.bool_] | None = None,
    earlier: PreparationRecord | None = None,
    external: bool = True,
    keep_failed: bool = False,
) -> PreparedStudy:
    """Bring a study to the working grid and normalise it, with one interpolation a sequence.

    A study that comes skull-stripped and registered is left where it is. Any other has its T1, T2 and FLAIR registered
    to the T1ce, and its brain outlined; transform and change of grid are composed, so that every sequence is still
    interpolated once, from the scanner's voxels.

    Args:
        study: four sequences; those as scanned where the study knows them.
        spacing_mm: isotropic voxel distance of the working grid; coarser than the scan means averaging.
        normalisation: one of `MTMed3DCore.preparation.NORMALISATIONS`; None leaves the scanner's intensities.
        progress: told as stage ``prepare``.
        mask: a brain mask (X, Y, Z) of the user's on the T1ce grid, which goes before any other.
        earlier: an earlier preparation of the same study, whose transforms and mask are used again.
        external: whether HD-BET or SynthStrip may be run where they are installed.
        keep_failed: leave a sequence whose registration failed where its header puts it, with a notice, so that the
            preparation can be looked at and corrected; otherwise such a study is refused.

    Raises:
        InputRefused: ``registration-failed``; ``preparation-missing``, `earlier` has no mask and none is given; or no
            brain is to be seen.
        WrongUse: an unknown normalisation or a spacing that is not positive.
    """
    progress("prepare", 0.0, "Finding the brain")
    volumes = _as_scanned(study)
    stripped = find_stripped_brain({name: study.sequences[name].array for name in SEQUENCES}, study.grid)
    notices: list[Notice] = []
    if earlier is not None:
        registrations = tuple(earlier.registrations)
        found = _mask_again(earlier, mask)
    elif stripped is not None and stripped.agreement >= ENOUGH_AGREEMENT:
        registrations = tuple(Registration(name, np.eye(4), "header", "not-needed") for name in _others())
        found = BrainMask(stripped.mask, "stripped") if mask is None else BrainMask(mask, "given")
    else:
        # The consensus of sequences that lie apart is no brain; the T1ce's own is.
        alone = None if stripped is None else find_stripped_brain({REFERENCE: volumes[REFERENCE].array}, study.grid)
        given = mask if mask is not None else None if alone is None else alone.mask
        even, registrations = _registered(volumes, progress)
        if not keep_failed:
            _refuse_failed(registrations)
        if given is not None:
            found = BrainMask(given, "stripped" if mask is None else "given")
        else:
            progress("prepare", 0.65, "Outlining the brain")
            matrices = {each.sequence: each.matrix for each in registrations}
            found = find_mask(volumes[REFERENCE], even, matrices, external=external)
    notices.extend((*found.notices, *_doubts(registrations)))
    grid = working_grid(study.grid, VoxelBox.around(found.mask), spacing_mm)
    brain = resample_axes(found.mask, study.grid, grid, "edge") >= 0.5
    record = PreparationRecord(study.grid, grid, found.mask, found.source, registrations)
    matrices = {each.sequence: each.matrix for each in registrations} | {REFERENCE: np.eye(4)}
    image = np.empty((len(SEQUENCES), *grid.shape), dtype=np.float32)
    for index, name in enumerate(SEQUENCES):
        progress("prepare", 0.8 + 0.15 * index / len(SEQUENCES), f"Resampling {name}")
        volume = volumes[name]
        if volume.grid is study.grid and np.array_equal(matrices[name], np.eye(4)):
            values = resample_axes(volume.array, study.grid, grid, "edge")
        else:
            values = resample_rigid(volume, matrices[name], grid)
            notices.extend(_uncovered(name, volume, matrices[name], grid, brain))
        notices.extend(_cut_short(name, values, brain))
        image[index] = np.where(brain, values, 0.0)
    if normalisation is not None:
        progress("prepare", 0.95, "Normalising intensities")
        image = normalise(image, brain, normalisation)
    progress("prepare", 1.0, "Prepared")
    return PreparedStudy(image, brain, grid, study.grid, found.source == "stripped", tuple(notices), record)


def to_native(prepared: PreparedStudy, array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Arrays on the working grid, linearly interpolated on the native grid; zero beyond the working grid.

    Channels go one by one and axis by axis, so beyond the result only one channel's worth of memory is needed.

    Args:
        array: (C, X, Y, Z) on ``prepared.grid``.

    Returns:
        float32 (C, *native.shape).
    """
    result = np.empty((len(array), *prepared.native.shape), dtype=np.float32)
    for channel, out in zip(array, result, strict=True):
        out[...] = resample_axes(channel, prepared.grid, prepared.native, "zero")
    return result


def _mask_again(earlier: PreparationRecord, mask: npt.NDArray[np.bool_] | None) -> BrainMask:
    """The user's mask, or that of an earlier preparation."""
    if mask is not None:
        return BrainMask(mask, "given")
    if earlier.brain is None:
        text = "The earlier preparation holds figures but no brain mask."
        raise InputRefused("preparation-missing", text, "Give a mask too, or the folder with brain_mask.nii.gz.")
    return BrainMask(earlier.brain, earlier.brain_source)


def _others() -> tuple[str, ...]:
    return tuple(name for name in SEQUENCES if name != REFERENCE)


def _as_scanned(study: Study) -> dict[str, Volume]:
    """Every sequence on its own grid; those that share the T1ce's lie on the very same grid object."""
    scanned: Mapping[str, Volume] = getattr(study, "scanned", {})  # absent from stand-ins
    volumes = {}
    for name in SEQUENCES:
        volume = scanned.get(name)
        if volume is None or volume.grid.same_as(study.grid):
            volume = Volume(study.sequences[name].array, study.grid)
        volumes[name] = volume
    return volumes


def _registered(volumes: Mapping[str, Volume], progress: Progress) -> tuple[dict[str, Image], tuple[Registration, ...]]:
    """The sequences as scanned without the coils' shading, and where each lies against the T1ce."""
    from MTMed3DCore.preparation.head import bias_corrected, settled
    from MTMed3DCore.preparation.registration import FixedImage, register

    even = {}
    for index, name in enumerate(SEQUENCES):
        progress("prepare", 0.02 + 0.03 * index, f"Evening out {name}")
        even[name] = bias_corrected(settled(to_sitk(volumes[name])))
    progress("prepare", 0.15, "Preparing the registration")
    fixed = FixedImage(even[REFERENCE])
    registrations = []
    for index, name in enumerate(_others()):
        progress("prepare", 0.2 + 0.15 * index, f"Registering {name} to {REFERENCE}")
        registrations.append(register(fixed, even[name], name))
    return even, tuple(registrations)


def _refuse_failed(registrations: tuple[Registration, ...]) -> None:
    """Refuse a study of which a sequence lies nobody knows where.

    Raises:
        InputRefused: ``registration-failed``.
    """
    failed = [each for each in registrations if each.verdict == "failed"]
    if failed:
        named = " and ".join(f"the {each.sequence}{_apart(each)}" for each in failed)
        text = f"The registration to the T1ce failed for {named}, so nothing tells which voxels belong together."
        remedy = (
            "Check that the series are of one patient and one examination and show the whole head. If they are, run "
            "`mtmed3d prepare`, correct the transform in 3D Slicer, and analyse with --preparation."
        )
        raise InputRefused("registration-failed", text, remedy)


def _apart(each: Registration) -> str:
    if each.disagreement_mm is None:
        return " (no overlap was found)"
    return f" (two runs end {each.disagreement_mm:.1f} mm apart)"


def _doubts(registrations: tuple[Registration, ...]) -> list[Notice]:
    """What must be said about registrations that are not believed."""
    notices = []
    for each in registrations:
        if each.verdict == "failed":
            text = (
                f"The {each.sequence} could not be registered to the T1ce{_apart(each)}; it was left where its header "
                "puts it. If the patient moved between the two, regions and grade are unreliable."
            )
            notices.append(Notice("registration-failed", text))
        elif each.verdict == "doubtful":
            why = _apart(each) if each.disagreement_mm is not None else " (it is too small to be registered)"
            text = f"The registration of the {each.sequence} to the T1ce is doubtful{why}; compare the two by eye."
            notices.append(Notice("registration-doubtful", text))
    return notices


def _uncovered(name: str, volume: Volume, matrix: Any, grid: Grid, brain: npt.NDArray[np.bool_]) -> list[Notice]:
    """A notice where a sequence's field of view leaves brain out."""
    points = grid.to_world(np.argwhere(brain)[:: max(1, int(brain.sum()) // 20_000)])
    voxels = volume.grid.to_voxel(points @ matrix[:3, :3].T + matrix[:3, 3])
    # Half a voxel beyond the outermost centre still belongs to the scan.
    covered = float(((voxels >= -0.5) & (voxels <= np.array(volume.grid.shape) - 0.5)).all(axis=1).mean())
    if covered >= ENOUGH_COVERED:
        return []
    text = f"The {name} shows only {covered:.0%} of the brain; beyond it, its outermost values were repeated."
    return [Notice("brain-not-covered", text)]


def _cut_short(name: str, values: npt.NDArray[np.floating[Any]], brain: npt.NDArray[np.bool_]) -> list[Notice]:
    """A notice where whole planes of the brain are nothing but zeros, as readers leave them that fill up a cut file."""
    shown = brain & (values != 0)
    empty = 0.0
    for axes in ((1, 2), (0, 2), (0, 1)):
        voxels = brain.sum(axis=axes)
        empty = max(empty, float(voxels[~shown.any(axis=axes)].sum() / voxels.sum()))
    if empty <= 1 - ENOUGH_COVERED:
        return []
    text = f"The {name} is empty in {empty:.0%} of the brain, as if its file had been cut short; load it anew."
    return [Notice("brain-not-covered", text)]
