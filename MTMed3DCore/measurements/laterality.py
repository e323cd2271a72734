"""On which side of the brain a tumour lies: against the plane over which the brain mirrors onto itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import minimize

from MTMed3DCore.geometry import FloatArray, Grid

BILATERAL_SHARE = 0.1
"""Share of a tumour that must lie on each side for it to count as bilateral."""
_COARSE_MM, _POINTS = 3.0, 4000
Mask = npt.NDArray[np.bool_]


def midplane(brain: Mask, grid: Grid) -> FloatArray:
    """The plane between the hemispheres: ``x = c0 + c1 * y + c2 * z`` in RAS mm.

    The plane over which the brain mask mirrors best onto itself, so a tilted head has a tilted plane.

    Args:
        brain: bool (X, Y, Z), not empty.

    Returns:
        The three coefficients.
    """
    strides = np.maximum(1, np.floor(_COARSE_MM / grid.spacing)).astype(int)
    coarse = np.pad(brain[:: strides[0], :: strides[1], :: strides[2]], 3)
    if not coarse.any():
        coarse, strides = np.pad(brain, 3), np.ones(3, dtype=int)
    outside = ndimage.distance_transform_edt(~coarse, sampling=grid.spacing * strides)
    points = grid.to_world((np.argwhere(coarse) - 3) * strides)
    points = points[:: max(1, len(points) // _POINTS)]
    middle = points.mean(axis=0)

    def misfit(pose: FloatArray) -> float:
        normal = np.array([1.0, -pose[1], -pose[2]])
        normal /= np.linalg.norm(normal)
        depth = (points - middle) @ normal - pose[0]
        mirrored = grid.to_voxel(points - 2 * depth[:, None] * normal) / strides + 3
        away = ndimage.map_coordinates(outside, mirrored.T, order=1, mode="nearest")
        return float((away**2).mean())

    start = np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1]])
    found = minimize(misfit, start[0], method="Nelder-Mead", options={"initial_simplex": start, "maxiter": 150})
    shift, slope_y, slope_z = found.x
    length = np.sqrt(1 + slope_y**2 + slope_z**2)
    return np.array([middle[0] + shift * length - slope_y * middle[1] - slope_z * middle[2], slope_y, slope_z])


def laterality(tumour: Mask, grid: Grid, plane: FloatArray) -> dict[str, Any] | None:
    """The side of a tumour.

    Args:
        tumour: bool (X, Y, Z).
        plane: of `midplane`.

    Returns:
        ``side``: ``"right"``, ``"left"`` or ``"bilateral"`` (the patient's), and ``right_share``, 0 to 1; None for an
        empty mask.
    """
    if not tumour.any():
        return None
    points = grid.to_world(np.argwhere(tumour))
    right = float((points[:, 0] > plane[0] + points[:, 1:] @ plane[1:]).mean())
    both = BILATERAL_SHARE <= right <= 1 - BILATERAL_SHARE
    return {"side": "bilateral" if both else "right" if right > 0.5 else "left", "right_share": right}
