"""Everything that is measured on the region of one lesion: by an analysis, and anew after a reader's corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from MTMed3DCore.findings import ENHANCING, volumes_ml
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.measurements.laterality import laterality
from MTMed3DCore.measurements.rano import bidimensional

if TYPE_CHECKING:
    from MTMed3DCore.geometry import FloatArray, Grid

Mask = npt.NDArray[np.bool_]


def measure_region(region: Mask, labels: npt.NDArray[np.uint8], grid: Grid, plane: FloatArray | None) -> dict[str, Any]:
    """Measurements of one lesion.

    Args:
        region: bool (X, Y, Z), the lesion's whole tumour, not empty.
        labels: uint8 (X, Y, Z) of the study.
        grid: of both, the T1ce's as it came in.
        plane: between the hemispheres, of `midplane`; without it no side is told.

    Returns:
        ``volumes_ml``, ``longest_diameter_mm``, ``rano`` and ``laterality`` as `MTMed3DCore.findings.Lesion` has them.
    """
    where = VoxelBox.around(region).slices(grid.shape)
    return {
        "volumes_ml": volumes_ml(labels[where] * region[where], grid),
        "longest_diameter_mm": longest_diameter_mm(region, grid),
        "rano": bidimensional(region & (labels == ENHANCING), grid),
        "laterality": None if plane is None else laterality(region, grid, plane),
    }


def longest_diameter_mm(mask: npt.NDArray[np.bool_], grid: Grid) -> float:
    """Greatest distance between two points of a mask (X, Y, Z) in mm.

    A voxel reaches to the centres of its six faces, so one voxel of 1 mm measures 1 mm and a smooth body its true
    length on average.

    Raises:
        ValueError: no voxel is true.
    """
    where = VoxelBox.around(mask).slices(grid.shape)
    part = mask[where]
    columns = part.any(axis=2)
    first, last = part.argmax(axis=2), part.shape[2] - 1 - part[:, :, ::-1].argmax(axis=2)
    x, y = np.nonzero(columns)
    # The ends of the columns span the same convex hull as all voxels together.
    ends = np.concatenate([np.stack([x, y, side[columns]], axis=1) for side in (first, last)]).astype(np.float64)
    faces = np.concatenate([np.eye(3), -np.eye(3)]) / 2
    points = grid.to_world((ends[:, None] + faces + [each.start for each in where]).reshape(-1, 3))
    return float(pdist(points[ConvexHull(points).vertices]).max())
