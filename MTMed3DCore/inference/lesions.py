"""From region probabilities and detected boxes to lesions on the native grid.

The two heads seldom agree to the voxel, so one rule reconciles them:

* a whole-tumour component belongs to the detected box that overlaps it best, if any overlaps it enough;
* a box with components is one lesion: it keeps the detection's score, and takes the tight box of its voxels, because
  regions are accurate to the voxel and boxes are not;
* a component without a box is a lesion of origin ``"region"`` with a lowered score, and a notice; a small one is left
  out, and a notice says so: what only the segmentation sees is more often false than not;
* a box without any tumour voxel is a lesion of origin ``"detection"`` without volume, and a notice;
* a box whose tumour voxels all belong to a better box saw the same tumour twice, and is dropped;
* brightness on FLAIR apart from the tumour that has next to no core, and that no box is about, is not called tumour
  (an occipital lobe near the coil looks like faint oedema), and a notice says what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.distance import pdist

from MTMed3DCore.findings import (
    ENHANCING,
    ENHANCING_TUMOUR,
    NECROTIC_CORE,
    OEDEMA,
    TUMOUR_CORE,
    WHOLE_TUMOUR,
    Lesion,
    volumes_ml,
)
from MTMed3DCore.geometry import CORNER_SIGNS, FloatArray, Grid, VoxelBox
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.measurements.region import measure_region
from MTMed3DCore.notice import Notice

MERGE_MM = 5.0
"""Whole-tumour components closer than this are one lesion."""
ENOUGH_IOU = 0.1
"""Overlap with a component's tight box from which a detected box holds it: the hit criterion of the published work."""
ENOUGH_CONTAINED = 0.5
"""Share of a component's voxels inside a detected box from which the box holds it, however large the box is."""
WORTH_TELLING_ML = 1.0
"""Volume of left-out brightness from which a notice tells of it."""
FAINT = "apart from the tumour look like faint oedema without any core"
UNBOXED = "look like tumour to the segmentation, but not to the box detector, are small,"
REGION_SCORE_FACTOR = 0.5
"""A region that the detection head did not confirm scores half its mean whole-tumour probability."""
_EVERYWHERE = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True, eq=False)
class LesionSet:
    """Labels and lesions that agree with each other.

    Args:
        labels: uint8 (X, Y, Z): 0 none, 1 necrotic core, 2 oedema, 4 enhancing.
        lesions: best score first.
        notices: where the heads disagreed.
    """

    labels: npt.NDArray[np.uint8]
    lesions: tuple[Lesion, ...]
    notices: tuple[Notice, ...]


def find_lesions(
    regions: npt.NDArray[np.floating[Any]],
    boxes: Sequence[VoxelBox],
    scores: Sequence[float],
    grid: Grid,
    settings: InferenceSettings,
    *,
    plane: FloatArray | None = None,
    detects: bool = True,
) -> LesionSet:
    """Labels and lesions of a study.

    Args:
        regions: probabilities (3, X, Y, Z) of TC, WT, ET on `grid`.
        boxes: detected boxes in voxels of `grid`.
        scores: of the boxes, 0 to 1.
        grid: the native T1ce grid.
        settings: the model's; its thresholds decide.
        detects: whether a detector looked for boxes at all; without one, a region scores its mean whole-tumour
            probability, and its box is the tight one.
        plane: between the hemispheres, of `MTMed3DCore.measurements.midplane`; without it no side is told.
    """
    labels = label_map(regions, settings.region_thresholds)
    components = tumour_components(labels > 0, grid, settings.minimum_lesion_ml)
    labels[components == 0] = 0
    detections = [
        (inside, float(score))
        for box, score in zip(boxes, scores, strict=True)
        if score >= settings.score_threshold and (inside := _clipped(box, grid)) is not None
    ]
    extents = _extents(components)
    notices: list[Notice] = []
    coreless = _coreless(components, labels, settings.minimum_core_share)
    if coreless.any():
        _clear_boxed(coreless, extents, [box for box, _ in detections])
        left_out = coreless[components]
        labels[left_out] = 0
        components = _renumbered(components, ~coreless)
        extents = [extent for extent, dropped in zip(extents, coreless[1:], strict=True) if not dropped]
        notices.extend(_left_out("brightness-left-out", FAINT, left_out, grid))
    owners = [_owner(components, n, extent, detections) for n, extent in enumerate(extents, start=1)]
    lesions: list[Lesion] = []
    for index, (box, score) in enumerate(detections):
        held = [n for n, owner in enumerate(owners, start=1) if owner == index]
        if held:
            region = _together(components, held, extents)
            lesions.append(_lesion_of_region(region, labels, grid, score, "detection", plane))
        elif score >= settings.bare_box_score and not components[box.slices(grid.shape)].any():
            lesions.append(_lesion_of_box(box, grid, score))
    lone = [number for number, owner in enumerate(owners, start=1) if owner is None]
    if detects and settings.minimum_lone_ml > 0:
        voxels = np.bincount(components.ravel()) * grid.voxel_volume_ml
        small = [number for number in lone if voxels[number] < settings.minimum_lone_ml]
        left_out = _together(components, small, extents)
        labels[left_out] = 0
        notices.extend(_left_out("unboxed-left-out", UNBOXED, left_out, grid))
        lone = [number for number in lone if number not in small]
    for number in lone:
        region = _together(components, [number], extents)
        score = (REGION_SCORE_FACTOR if detects else 1.0) * float(regions[WHOLE_TUMOUR][region].mean())
        lesions.append(_lesion_of_region(region, labels, grid, score, "region", plane))
    lesions.sort(key=lambda lesion: -lesion.score)
    numbered = tuple(replace(each, id=n) for n, each in enumerate(lesions, start=1))
    told = _disagreements(numbered) if detects else _undetected(numbered)
    return LesionSet(labels, numbered, (*told, *notices))


def _undetected(lesions: Sequence[Lesion]) -> tuple[Notice, ...]:
    """One notice where boxes were drawn that no detector has found."""
    text = "The model has no box detector; each box is drawn round a segmented region."
    return (Notice("boxes-from-regions", text),) if lesions else ()


def _disagreements(lesions: Sequence[Lesion]) -> tuple[Notice, ...]:
    """At most one notice for each way in which the heads disagree, naming the lesions."""
    notices = []
    regions = [f"{each.id} ({each.volumes_ml['whole_tumour']:.1f} ml)" for each in lesions if each.origin == "region"]
    if regions:
        text = f"Segmented, but not found by the box detector: lesion {', '.join(regions)}."
        notices.append(Notice("region-without-box", text))
    empty = [each for each in lesions if not each.volumes_ml["whole_tumour"]]
    if empty:
        named = ", ".join(f"{each.id} (score {each.score:.2f})" for each in empty)
        notices.append(
            Notice("box-without-region", f"Boxed, but without segmented tumour: lesion {named}; look there.")
        )
    return tuple(notices)


def _left_out(code: str, why: str, left_out: npt.NDArray[np.bool_], grid: Grid) -> tuple[Notice, ...]:
    """One notice where something was not called tumour, with its volume and where to look."""
    volume = float(left_out.sum()) * grid.voxel_volume_ml
    if volume < WORTH_TELLING_ML:
        return ()
    numbers, count = ndimage.label(left_out, structure=_EVERYWHERE)
    largest = 1 + int(np.argmax(np.bincount(numbers.ravel(), minlength=count + 1)[1:]))
    x, y, z = VoxelBox.around(numbers == largest).to_world(grid).center
    text = f"{volume:.1f} ml {why} and were left out; the largest part lies round R {x:.0f}, A {y:.0f}, S {z:.0f} mm."
    return (Notice(code, text),)


def label_map(regions: npt.NDArray[np.floating[Any]], thresholds: Sequence[float]) -> npt.NDArray[np.uint8]:
    """Probabilities (3, X, Y, Z) of TC, WT, ET to labels.

    Regions are nested: what enhances is core, what is core is tumour. A voxel that breaks the nesting counts for the
    inner region, as in the BraTS convention of painting WT, then TC, then ET over it.
    """
    labels = np.zeros(regions.shape[1:], dtype=np.uint8)
    for region, label in ((WHOLE_TUMOUR, OEDEMA), (TUMOUR_CORE, NECROTIC_CORE), (ENHANCING_TUMOUR, ENHANCING)):
        labels[regions[region] >= thresholds[region]] = label
    return labels


def tumour_components(tumour: npt.NDArray[np.bool_], grid: Grid, minimum_ml: float) -> npt.NDArray[np.int32]:
    """Number the separate tumours of a mask from 1; 0 elsewhere and where a tumour is smaller than `minimum_ml`.

    Voxels that touch (26 neighbours) are one tumour, and so are parts less than about `MERGE_MM` apart.
    """
    result = np.zeros(tumour.shape, dtype=np.int32)
    if not tumour.any():
        return result
    where = VoxelBox.around(tumour).slices(grid.shape)
    mask = tumour[where]
    near = ndimage.distance_transform_edt(~mask, sampling=grid.spacing) < MERGE_MM / 2
    numbers, _ = ndimage.label(near | mask, structure=_EVERYWHERE)
    numbers *= mask
    result[where] = _renumbered(numbers, np.bincount(numbers.ravel()) * grid.voxel_volume_ml >= minimum_ml)
    return result


def _renumbered(numbers: npt.NDArray[np.int32], kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Components numbered from 1 without gaps, those that are not kept 0."""
    kept = kept.copy()
    kept[0] = False
    renumbered: npt.NDArray[np.int32] = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[numbers]
    return renumbered


def _coreless(
    components: npt.NDArray[np.int32], labels: npt.NDArray[np.uint8], minimum_share: float
) -> npt.NDArray[np.bool_]:
    """Which component numbers have less than a share of core; never that with most core."""
    if minimum_share == 0:
        return np.zeros(int(components.max()) + 1, dtype=bool)
    voxels = np.bincount(components.ravel())
    is_core = (labels == NECROTIC_CORE) | (labels == ENHANCING)
    core = np.bincount(components[is_core], minlength=len(voxels))
    coreless: npt.NDArray[np.bool_] = (core < minimum_share * voxels) & (core < core[1:].max(initial=0))
    coreless[0] = False
    return coreless


def _clear_boxed(coreless: npt.NDArray[np.bool_], extents: Sequence[VoxelBox], boxes: Sequence[VoxelBox]) -> None:
    """Take the components that a box is about out of the coreless ones."""
    for box in boxes:
        overlaps = [extent.iou(box) for extent in extents]
        about = int(np.argmax(overlaps))
        if overlaps[about] >= ENOUGH_IOU:
            coreless[about + 1] = False


def _extents(components: npt.NDArray[np.int32]) -> list[VoxelBox]:
    """The tight box of every component, in the order of their numbers."""
    found = [place for place in ndimage.find_objects(components) if place is not None]
    return [VoxelBox.from_list([*(s.start for s in place), *(s.stop for s in place)]) for place in found]


def _together(
    components: npt.NDArray[np.int32], numbers: Sequence[int], extents: Sequence[VoxelBox]
) -> npt.NDArray[np.bool_]:
    """The voxels of some components, bool (X, Y, Z)."""
    x, y, z = components.shape
    region = np.zeros((x, y, z), dtype=bool)
    for number in numbers:
        where = extents[number - 1].slices((x, y, z))
        region[where] |= components[where] == number
    return region


def _owner(
    components: npt.NDArray[np.int32], number: int, extent: VoxelBox, detections: Sequence[tuple[VoxelBox, float]]
) -> int | None:
    """Index of the detection that overlaps a component best, or None where none overlaps it enough."""
    best: tuple[float, float, float] | None = None
    owner = None
    x, y, z = components.shape
    part = components[extent.slices((x, y, z))] == number
    volume = float(part.sum())
    for index, (box, score) in enumerate(detections):
        iou = extent.iou(box)
        contained = float((components[box.slices((x, y, z))] == number).sum()) / volume
        if iou < ENOUGH_IOU and contained < ENOUGH_CONTAINED:
            continue
        if best is None or (iou, contained, score) > best:
            best, owner = (iou, contained, score), index
    return owner


def _clipped(box: VoxelBox, grid: Grid) -> VoxelBox | None:
    """The part of a box inside the grid, or None."""
    lower, upper = np.clip(box.lower, 0, grid.shape), np.clip(box.upper, 0, grid.shape)
    if (upper - lower <= 0).any():
        return None
    return VoxelBox.from_list([*lower, *upper])


def _lesion_of_region(
    region: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.uint8],
    grid: Grid,
    score: float,
    origin: str,
    plane: FloatArray | None,
) -> Lesion:
    box = VoxelBox.around(region).to_world(grid)
    return Lesion(0, score, box, origin=origin, **measure_region(region, labels, grid, plane))


def _lesion_of_box(box: VoxelBox, grid: Grid, score: float) -> Lesion:
    world = box.to_world(grid)
    corners = world.center + (CORNER_SIGNS * world.size / 2) @ world.axes
    empty = volumes_ml(np.zeros((1, 1, 1), dtype=np.uint8), grid)
    return Lesion(0, score, world, empty, float(pdist(corners).max()), "detection")
