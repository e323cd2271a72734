"""Rigid registration of a sequence to the T1ce by mutual information, with figures that say whether it held.

Mutual information after Mattes et al. (IEEE Trans Med Imaging 22, 2003) in three resolutions. The coarsest is searched
over many starting poses, because the headers of series from different sittings may be far apart. Bias-corrected copies
(N4, Tustison et al., IEEE Trans Med Imaging 29, 2010) steer the search and are then thrown away.

A registration has no truth to be compared with, so it is repeated from a displaced start with other samples: two runs
that end in the same place are believed, and how far apart they end is the quality figure.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from MTMed3DCore.preparation.head import head_mask, isotropic
from MTMed3DCore.preparation.record import Registration, ras_matrix

COARSE_MM, MIDDLE_MM, FINE_MM = 6.0, 3.0, 1.5
"""Voxel distance of the three resolutions."""
BELIEVED_MM, DOUBTED_MM = 1.5, 4.0
"""Mean distance over the head at which two runs end apart: up to the first good, beyond the second failed."""
LARGEST_ROTATION_DEG, LARGEST_TRANSLATION_MM = 45.0, 80.0
"""Beyond these no patient moves between two series of one examination."""
SMALLEST_MM = 36.0
"""Extent of an image along its shortest side below which nothing is tried."""
_SAMPLES = {COARSE_MM: 6_000, MIDDLE_MM: 20_000, FINE_MM: 50_000}
_BINS = 32
_REPEAT_START = (7.0, -6.0, 5.0, 6.0, -5.0, 7.0)
"""Displacement of the repeat's start: degrees about three axes, then millimetres."""


class FixedImage:
    """The T1ce, made ready once for the registration of several sequences.

    Args:
        image: the T1ce as it came in, without the coils' shading.
    """

    def __init__(self, image: sitk.Image) -> None:
        self.levels = {mm: isotropic(image, mm) for mm in (COARSE_MM, MIDDLE_MM, FINE_MM)}
        self.masks = {mm: _rim(head_mask(level), mm) for mm, level in self.levels.items()}
        coarse = self.masks[COARSE_MM]
        inside = np.argwhere(sitk.GetArrayViewFromImage(coarse) > 0)[:, ::-1]
        direction = np.reshape(coarse.GetDirection(), (3, 3)) * coarse.GetSpacing()
        points = inside @ direction.T + coarse.GetOrigin()
        self.points = points[:: max(1, len(points) // 2000)]
        """Points of the head in LPS mm, shape (N, 3)."""
        self.middle = self.points.mean(axis=0)


def register(fixed: FixedImage, moving: sitk.Image, sequence: str) -> Registration:
    """Find the rigid motion that brings a sequence over the T1ce.

    Args:
        fixed: the T1ce.
        moving: the sequence as it came in, on its own grid, without the coils' shading.
        sequence: its name.

    Returns:
        The better of what was found and of the scanner's word, with its verdict: ``"failed"`` where two runs contradict
        each other, end where no patient moves, or find no overlap; ``"doubtful"`` where they differ more than is
        believed, where the scanner's word fits better than a distant place that both found, or where the image is too
        small to try. A failed registration returns the scanner's word.
    """
    levels = {mm: isotropic(moving, mm) for mm in (COARSE_MM, MIDDLE_MM, FINE_MM)}
    header = _euler(fixed.middle, np.zeros(6))
    if min(levels[FINE_MM].GetSize()) * FINE_MM < SMALLEST_MM:
        return Registration(sequence, np.eye(4), "header", "doubtful")
    try:
        found = _refined(fixed, levels, _search(fixed, levels[COARSE_MM]), seed=1)
        displaced = _euler(fixed.middle, np.asarray(_REPEAT_START))
        start = sitk.Euler3DTransform(found)
        start.SetMatrix((np.reshape(found.GetMatrix(), (3, 3)) @ np.reshape(displaced.GetMatrix(), (3, 3))).ravel())
        start.SetTranslation(np.add(found.GetTranslation(), displaced.GetTranslation()).tolist())
        start = _optimised(fixed, levels[COARSE_MM], start, COARSE_MM, seed=2)
        repeat = _refined(fixed, levels, start, seed=2)
        apart = _distance(found, repeat, fixed.points)
        information = _information(fixed, levels[MIDDLE_MM], found)
        at_header = _information(fixed, levels[MIDDLE_MM], header)
        if (other := _information(fixed, levels[MIDDLE_MM], repeat)) > 1.02 * information:
            found, information = repeat, other
    except RuntimeError:  # ITK: the samples do not overlap
        return Registration(sequence, np.eye(4), "header", "failed")
    figures = {"disagreement_mm": apart, "mutual_information": information, "mutual_information_header": at_header}
    rotation, translation = _motion(found, fixed.middle)
    if rotation > LARGEST_ROTATION_DEG or translation > LARGEST_TRANSLATION_MM or apart >= DOUBTED_MM:
        return Registration(sequence, np.eye(4), "header", "failed", **figures)
    if information < at_header:
        # Images that share a grid fit best just where they are, where nothing has to be interpolated.
        near = max(apart, _distance(found, header, fixed.points))
        return Registration(sequence, np.eye(4), "header", "good" if near <= BELIEVED_MM else "doubtful", **figures)
    verdict = "good" if apart <= BELIEVED_MM else "doubtful"
    return Registration(sequence, ras_matrix(found), "mutual-information", verdict, **figures,
                        rotation_deg=rotation, translation_mm=translation)  # fmt: skip


def _rim(mask: sitk.Image, spacing_mm: float) -> sitk.Image:
    """A head mask with some air round it: without air, nothing tells where the head ends."""
    return sitk.BinaryDilate(mask, [max(1, round(8.0 / spacing_mm))] * 3)


def _search(fixed: FixedImage, moving: sitk.Image) -> sitk.Euler3DTransform:
    """The best of many starting poses at the coarsest resolution."""
    method = _method(fixed, moving, COARSE_MM, seed=1)
    shifts = [np.zeros(3)]
    centre = _head_middle(moving)
    if np.linalg.norm(centre - fixed.middle) > 20.0:
        shifts.append(centre - fixed.middle)
    tried: list[tuple[float, tuple[float, ...], sitk.Euler3DTransform]] = []
    for shift in shifts:
        for pitch, roll, yaw in product((-20.0, -10.0, 0.0, 10.0, 20.0), (-12.0, 0.0, 12.0), (-12.0, 0.0, 12.0)):
            pose = _euler(fixed.middle, np.array([pitch, roll, yaw, *shift]))
            method.SetInitialTransform(pose, inPlace=False)
            try:
                value = method.MetricEvaluate(fixed.levels[COARSE_MM], moving)
            except RuntimeError:  # no overlap from there
                continue
            tried.append((value, (pitch, roll, yaw), pose))
    if not tried:
        raise RuntimeError("no starting pose overlaps")
    tried.sort(key=lambda each: each[0])
    ends: list[tuple[float, int, sitk.Euler3DTransform]] = []
    for _, _, pose in [*tried[:3], next(each for each in tried if each[1] == (0.0, 0.0, 0.0))]:
        end = _optimised(fixed, moving, pose, COARSE_MM, seed=1)
        ends.append((-_information(fixed, moving, end, COARSE_MM), len(ends), end))
    return min(ends)[2]


def _refined(
    fixed: FixedImage, levels: dict[float, sitk.Image], start: sitk.Euler3DTransform, seed: int
) -> sitk.Euler3DTransform:
    for mm in (MIDDLE_MM, FINE_MM):
        start = _optimised(fixed, levels[mm], start, mm, seed)
    return start


def _optimised(
    fixed: FixedImage, moving: sitk.Image, start: sitk.Euler3DTransform, mm: float, seed: int
) -> sitk.Euler3DTransform:
    method = _method(fixed, moving, mm, seed)
    method.SetOptimizerAsRegularStepGradientDescent(mm, mm / 200.0, 80, relaxationFactor=0.6)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    return sitk.Euler3DTransform(method.Execute(fixed.levels[mm], moving).GetNthTransform(0))


def _method(fixed: FixedImage, moving: sitk.Image, mm: float, seed: int) -> sitk.ImageRegistrationMethod:
    voxels = float(np.prod(fixed.levels[mm].GetSize()))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricFixedMask(fixed.masks[mm])
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(1.0, _SAMPLES[mm] / voxels), seed=seed)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _information(fixed: FixedImage, moving: sitk.Image, pose: sitk.Euler3DTransform, mm: float = MIDDLE_MM) -> float:
    method = _method(fixed, moving, mm, seed=3)
    method.SetInitialTransform(pose, inPlace=False)
    return -float(method.MetricEvaluate(fixed.levels[mm], moving))


def _head_middle(image: sitk.Image) -> npt.NDArray[Any]:
    inside = np.argwhere(sitk.GetArrayViewFromImage(head_mask(image)) > 0)[:, ::-1].mean(axis=0)
    return np.asarray(image.TransformContinuousIndexToPhysicalPoint(inside.tolist()))


def _euler(centre: npt.NDArray[Any], pose: npt.NDArray[Any]) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetRotation(*np.radians(pose[:3]).tolist())
    transform.SetTranslation(pose[3:].tolist())
    return transform


def _moved(transform: sitk.Transform, points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


def _distance(one: sitk.Transform, other: sitk.Transform, points: npt.NDArray[Any]) -> float:
    """Mean distance in mm at which two poses put the same points."""
    return float(np.linalg.norm(_moved(one, points) - _moved(other, points), axis=1).mean())


def _motion(transform: sitk.Transform, middle: npt.NDArray[Any]) -> tuple[float, float]:
    """Degrees of the rotation, and millimetres that the head's middle moves."""
    cosine = (np.trace(ras_matrix(transform)[:3, :3]) - 1) / 2
    shift = _moved(transform, middle[None])[0] - middle
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), float(np.linalg.norm(shift))
