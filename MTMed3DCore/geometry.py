"""Grids, voxel boxes and world boxes: the three geometric types, and the only conversions between them.

Frames. *Voxel*: continuous array indices; the voxel ``(i, j, k)`` has its centre at exactly ``(i, j, k)`` and fills
``[i - 0.5, i + 0.5)``. *World*: RAS millimetres (x to the patient's right, y to anterior, z to superior), as nibabel
and MONAI use. A world box is oriented, so the box of an oblique scan stays tight; every conversion carries all eight
corners, never two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
CORNER_SIGNS = np.array(list(product((-1.0, 1.0), repeat=3)))
"""Signs of the eight corners of a box along its three axes, shape (8, 3)."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice of voxels in the world.

    Args:
        shape: number of voxels along each array axis.
        affine: 4 x 4 matrix from voxel indices to RAS millimetres; any orientation, obliquity, flip and spacing.

    Raises:
        ValueError: the matrix is not 4 x 4, not finite or singular, or a dimension is below one.
    """

    shape: tuple[int, int, int]
    affine: FloatArray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"A grid has three dimensions of at least one voxel, got {self.shape}.")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"An affine is a finite 4 x 4 matrix, got shape {affine.shape}: {affine.tolist()}.")
        if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ValueError(f"An affine must be invertible, got {affine.tolist()}.")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing(self) -> FloatArray:
        """Distance between voxel centres along each array axis in mm, shape (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def axes(self) -> FloatArray:
        """Unit vectors of the array axes in RAS, one a row, shape (3, 3)."""
        return (self.affine[:3, :3] / self.spacing).T

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def to_world(self, points: npt.ArrayLike) -> FloatArray:
        """Voxel points (..., 3) to RAS mm (..., 3)."""
        return np.asarray(points, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_voxel(self, points: npt.ArrayLike) -> FloatArray:
        """RAS mm points (..., 3) to continuous voxel indices (..., 3)."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(points, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def corners(self) -> FloatArray:
        """The eight outer corners of the grid in RAS mm, shape (8, 3)."""
        return VoxelBox((0, 0, 0), self.shape).to_world(self).corners()

    def same_as(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids have the same shape and no corner lies further apart than the tolerance."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners() - other.corners()).max() <= tolerance_mm)


@dataclass(frozen=True)
class VoxelBox:
    """A box of whole or fractional voxels, half-open: ``[x0, y0, z0, x1, y1, z1)``.

    The box ``[0, 0, 0, n, n, n)`` holds exactly the voxels 0 to n - 1 of each axis, so its faces lie at the outer faces
    of those voxels, half a voxel outside their centres.
    """

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]

    def __post_init__(self) -> None:
        lower, upper = (tuple(float(v) for v in side) for side in (self.lower, self.upper))
        if len(lower) != 3 or len(upper) != 3 or not np.isfinite(lower + upper).all():
            raise ValueError(f"A voxel box has three finite bounds a side, got {self.lower} and {self.upper}.")
        if any(high <= low for low, high in zip(lower, upper, strict=True)):
            raise ValueError(f"A voxel box has positive extent along every axis, got {self.lower} to {self.upper}.")
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    @classmethod
    def around(cls, mask: npt.NDArray[np.bool_]) -> VoxelBox:
        """The smallest box that holds every true voxel of a mask (X, Y, Z).

        Raises:
            ValueError: no voxel is true.
        """
        if not mask.any():
            raise ValueError("An empty mask has no box.")
        spans = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
        x, y, z = spans
        return cls((x[0], y[0], z[0]), (x[-1] + 1, y[-1] + 1, z[-1] + 1))

    @classmethod
    def from_list(cls, bounds: Sequence[float]) -> VoxelBox:
        """From ``[x0, y0, z0, x1, y1, z1]``."""
        x0, y0, z0, x1, y1, z1 = bounds
        return cls((x0, y0, z0), (x1, y1, z1))

    def to_list(self) -> list[float]:
        """As ``[x0, y0, z0, x1, y1, z1]``."""
        return [*self.lower, *self.upper]

    @property
    def size(self) -> FloatArray:
        """Extent along each axis in voxels, shape (3,)."""
        return np.subtract(self.upper, self.lower)

    def slices(self, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        """Index of the voxels of an array of `shape` whose centres lie in the box."""
        low, high = (
            np.clip(np.ceil(np.asarray(side) - 0.5), 0, shape).astype(int) for side in (self.lower, self.upper)
        )
        x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        return x, y, z

    def iou(self, other: VoxelBox) -> float:
        """Intersection over union with another box of the same grid."""
        shared = np.clip(np.minimum(self.upper, other.upper) - np.maximum(self.lower, other.lower), 0, None).prod()
        return float(shared / (self.size.prod() + other.size.prod() - shared))

    def to_world(self, grid: Grid) -> WorldBox:
        """The same box in the world, oriented along the grid's axes."""
        middle = (np.asarray(self.lower) + np.asarray(self.upper)) / 2 - 0.5
        return WorldBox(grid.to_world(middle), self.size * grid.spacing, grid.axes)


@dataclass(frozen=True, eq=False)
class WorldBox:
    """An oriented box in RAS millimetres.

    Args:
        center: RAS mm, shape (3,).
        size: full extent along each of the box's own axes in mm, shape (3,).
        axes: unit vectors of the box's axes in RAS, one a row, shape (3, 3); a left-handed set is allowed, because the
            axes of a flipped scan are one.
    """

    center: FloatArray
    size: FloatArray
    axes: FloatArray

    def __post_init__(self) -> None:
        for name, shape in (("center", (3,)), ("size", (3,)), ("axes", (3, 3))):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"A world box needs a finite {name} of shape {shape}, got {getattr(self, name)}.")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        if (self.size <= 0).any():
            raise ValueError(f"A world box has positive size along every axis, got {self.size.tolist()} mm.")

    def corners(self) -> FloatArray:
        """The eight corners in RAS mm, shape (8, 3)."""
        return self.center + (CORNER_SIGNS * self.size / 2) @ self.axes

    def to_voxel(self, grid: Grid) -> VoxelBox:
        """The smallest voxel box of `grid` that holds all eight corners."""
        corners = grid.to_voxel(self.corners()) + 0.5
        return VoxelBox(tuple(corners.min(axis=0)), tuple(corners.max(axis=0)))
