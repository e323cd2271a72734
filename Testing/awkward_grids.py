"""Grids on which geometry goes wrong if it can: flipped, turned, oblique and anisotropic."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

SHAPE = (24, 20, 18)


def oblique_affine() -> np.ndarray:
    """Anisotropic, rotated about all three axes, and with one axis flipped (left-handed)."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [12, -20, 33], degrees=True).as_matrix() @ np.diag([0.9, -1.2, 4.5])
    affine[:3, 3] = [-31.0, 44.0, -12.5]
    return affine


GRIDS = {
    "axial": np.array([[1.0, 0, 0, -12], [0, 1, 0, -10], [0, 0, 1, -9], [0, 0, 0, 1]]),
    "flipped": np.array([[-1.0, 0, 0, 12], [0, -1, 0, 10], [0, 0, 1.5, -9], [0, 0, 0, 1]]),
    "sagittal": np.array([[0, 0, 3.0, -20], [-1, 0, 0, 12], [0, -1, 0, 10], [0, 0, 0, 1]]),
    "oblique": oblique_affine(),
}
