"""The working grid, and resampling between it and the native grid.

Both grids share their axes up to order, sign and step, so a resampling is one small matrix along each axis: exact, fast
and with no volume of coordinates in memory.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from nibabel.orientations import io_orientation

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.geometry import FloatArray, Grid, VoxelBox
from MTMed3DCore.preparation.record import itk_transform
from MTMed3DCore.volume import Volume, to_sitk

MARGIN_MM = 6.0
"""Rim kept round the brain, so that convolutions see where it ends."""


def working_grid(native: Grid, box: VoxelBox, spacing_mm: float, margin_mm: float = MARGIN_MM) -> Grid:
    """The isotropic grid round a box, with axes as near to R, A, S as the native axes allow.

    The axes stay the native ones (an oblique scan keeps its obliquity), in the order and with the signs that bring each
    closest to right, anterior and superior; nothing is rotated, so one interpolation along each axis suffices.

    Args:
        native: grid of the T1ce as it came in.
        box: the brain on the native grid, in voxels.
        spacing_mm: distance of working voxels.
        margin_mm: rim added on every side, as far as the native grid reaches.

    Raises:
        WrongUse: the spacing is not positive.
    """
    if not spacing_mm > 0:
        raise WrongUse("spacing", f"The working spacing is {spacing_mm} mm.", "Give a positive number of millimetres.")
    orientation = io_orientation(native.affine)
    start, columns, counts = np.zeros(3), np.zeros((3, 3)), [0, 0, 0]
    for axis in range(3):
        working_axis, sign = int(orientation[axis, 0]), float(orientation[axis, 1])
        step = native.spacing[axis]
        low = max(0.0, box.lower[axis] - margin_mm / step) - 0.5
        high = min(float(native.shape[axis]), box.upper[axis] + margin_mm / step) - 0.5
        # A rest below a thousandth of a voxel is rounding, not a voxel more.
        counts[working_axis] = max(1, int(np.ceil((high - low) * step / spacing_mm - 1e-3)))
        half = 0.5 * spacing_mm / step
        start[axis] = low + half if sign > 0 else high - half
        columns[:, working_axis] = sign * native.axes[axis] * spacing_mm
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, native.to_world(start)
    return Grid((counts[0], counts[1], counts[2]), affine)


def resample_axes(
    array: npt.NDArray[Any], source: Grid, target: Grid, outside: Literal["edge", "zero"]
) -> npt.NDArray[np.float32]:
    """One linear interpolation from a grid to another whose axes are the same up to order, sign and step.

    Where the target is coarser along an axis, each of its voxels is the mean of the linear interpolant over the
    voxel's extent, which suppresses aliasing and still reproduces a linear ramp exactly.

    Args:
        array: (X, Y, Z) on `source`.
        outside: what lies beyond the source: its outermost values, or zeros.

    Returns:
        float32 array of ``target.shape``.

    Raises:
        ValueError: the axes differ by more than order, sign and step, or the array does not fit the source.
    """
    if array.shape != source.shape:
        raise ValueError(f"The array has shape {array.shape}, its grid {source.shape}.")
    mapping = np.linalg.inv(source.affine) @ target.affine
    order = np.abs(mapping[:3, :3]).argmax(axis=1)
    steps = mapping[np.arange(3), order]
    rest = mapping[:3, :3].copy()
    rest[np.arange(3), order] = 0.0
    if len(set(order.tolist())) != 3 or (np.abs(rest) * np.asarray(target.shape)).max() > 1e-3:
        raise ValueError("The two grids' axes differ by more than order, sign and step.")
    matrices, read, written = [], [], []
    for axis in range(3):
        weights = _axis_weights(target.shape[order[axis]], source.shape[axis], mapping[axis, 3], steps[axis], outside)
        used = weights != 0
        read.append(_extent(used.any(axis=0)))
        written.append(_extent(used.any(axis=1)))
        matrices.append(weights[written[axis], read[axis]])
    part = np.ascontiguousarray(array[tuple(read)], dtype=np.float32)
    # Matrix products on contiguous arrays: the last axis first, so that the others see what it has left.
    part = part @ matrices[2].T
    part = matrices[1] @ part
    part = (matrices[0] @ part.reshape(len(part), -1)).reshape(-1, *part.shape[1:])
    back = np.argsort(order)
    where = tuple(written[axis] for axis in back)
    result = np.zeros(target.shape, dtype=np.float32)
    result[where] = part.transpose(back)
    return result


def resample_rigid(volume: Volume, matrix: FloatArray, target: Grid) -> npt.NDArray[np.float32]:
    """One linear interpolation from a sequence's own voxels to a grid turned and moved against it.

    Where the target is coarser than the sequence, the interpolant is averaged over each target voxel, as
    `resample_axes` does. Beyond the sequence its outermost values are repeated.

    Args:
        volume: the sequence as it came in.
        matrix: 4 x 4, RAS mm of the target to RAS mm of the sequence.

    Returns:
        float32 array of ``target.shape``.
    """
    parts = int(np.clip(np.round(target.spacing.max() / volume.grid.spacing.min()), 1, 4))
    affine = target.affine.copy()
    affine[:3, :3] /= parts
    affine[:3, 3] = target.to_world([(1 - parts) / (2 * parts)] * 3)
    x, y, z = target.shape
    fine = Grid((x * parts, y * parts, z * parts), affine)
    template = to_sitk(Volume(np.zeros((1, 1, 1), np.float32), Grid((1, 1, 1), affine)))
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(template)
    resampler.SetSize(list(fine.shape))
    resampler.SetTransform(itk_transform(matrix))
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetUseNearestNeighborExtrapolator(True)
    array = sitk.GetArrayFromImage(resampler.Execute(to_sitk(volume))).transpose(2, 1, 0)
    return np.ascontiguousarray(array.reshape(x, parts, y, parts, z, parts).mean(axis=(1, 3, 5), dtype=np.float32))


def _extent(used: npt.NDArray[np.bool_]) -> slice:
    """From the first to the last that is used; empty where none is."""
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def _axis_weights(count: int, source_count: int, origin: float, step: float, outside: str) -> npt.NDArray[np.float32]:
    """Weights (count, source_count) of the source voxels in the target voxels at ``origin + step * k``."""
    centres = origin + step * np.arange(count)
    voxels = np.arange(source_count)
    if outside == "edge":
        # A mirror-free way to repeat the edge: virtual voxels beyond it, whose weights fall to the outermost one.
        reach = int(np.ceil(max(0.0, -centres.min(), centres.max() - source_count + 1) + abs(step))) + 1
        voxels = np.arange(-reach, source_count + reach)
    distance = centres[:, None] - voxels[None, :]
    width = abs(step)
    if width > 1.0 + 1e-6:
        weights = (_hat_integral(distance + width / 2) - _hat_integral(distance - width / 2)) / width
    else:
        weights = np.clip(1.0 - np.abs(distance), 0.0, None)
    if outside == "edge":
        inner = weights[:, reach : reach + source_count].copy()
        inner[:, 0] += weights[:, :reach].sum(axis=1)
        inner[:, -1] += weights[:, reach + source_count :].sum(axis=1)
        weights = inner
    weights[np.abs(weights) < 1e-9] = 0.0
    return weights.astype(np.float32)


def _hat_integral(t: FloatArray) -> FloatArray:
    """Integral from minus infinity to t of the linear interpolation kernel ``max(0, 1 - |t|)``."""
    t = np.clip(t, -1.0, 1.0)
    result: FloatArray = 0.5 + t - 0.5 * t * np.abs(t)
    return result
