"""Findings on grids of every kind, shared by the tests of exports, scene files and panel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from MTMed3DCore.findings import Findings, Grade, Lesion, ModelIdentity, volumes_ml
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.notice import Notice

SHAPE = (20, 24, 16)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation about R, then A, then S, in degrees."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        matrix = turn @ matrix
    return matrix


def grid_of(direction: np.ndarray, spacing: tuple[float, float, float]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = (-31.5, 12.25, 77.0)
    return Grid(SHAPE, affine.astype(np.float32))  # as exact as a NIfTI header


GRIDS = {
    "axial": grid_of(np.eye(3), (1.0, 1.0, 1.0)),
    "left-handed": grid_of(np.diag([-1.0, 1.0, 1.0]), (0.9, 1.1, 2.0)),
    "sagittal, left-handed": grid_of(np.eye(3)[[2, 0, 1]] * [1.0, -1.0, 1.0], (3.0, 0.5, 0.75)),
    "oblique": grid_of(rotation(17, -9, 24), (0.9, 0.9, 5.5)),
    "oblique, left-handed": grid_of(rotation(-33, 12, 8) * [1.0, 1.0, -1.0], (0.7, 1.3, 4.0)),
}


def findings_on(grid: Grid, *, tumour: bool = True, with_study: bool = True, **changes: Any) -> Findings:
    """Findings with two lesions near two corners of the grid, or with none."""
    labels = np.zeros(grid.shape, np.uint8)
    lesions = []
    if tumour:
        labels[2:9, 3:11, 4:10] = 2
        labels[3:7, 4:9, 5:9] = 4
        labels[4:6, 5:8, 6:8] = 1
        labels[14:18, 17:23, 2:5] = 2
        boxes = (VoxelBox((2, 3, 4), (9, 11, 10)), VoxelBox((13.5, 17, 2), (18, 23.25, 5)))
        for number, box in enumerate(boxes, 1):
            inside = np.zeros_like(labels)
            inside[box.slices(grid.shape)] = labels[box.slices(grid.shape)]
            origin = "detection" if number == 1 else "region"
            volumes = volumes_ml(inside, grid)
            lesions.append(Lesion(number, 0.97 / number, box.to_world(grid), volumes, 11.5, origin))
    image = np.random.default_rng(0).uniform(50, 400, grid.shape).astype(np.float32)
    study = SimpleNamespace(sequences={"t1ce": SimpleNamespace(array=image, grid=grid)}) if with_study else None
    fields: dict[str, Any] = {
        "study_id": "case <1> & $x$",
        "sources": {name: f"case/{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")},
        "grid": grid,
        "labels": labels,
        "lesions": tuple(lesions),
        "grade": Grade("HGG", 0.93) if tumour else None,
        "model": ModelIdentity("starter", "1.0", "0" * 64, "synthetic studies"),
        "warnings": (Notice("channel-order-assumed", "The channel order <was> assumed."),),
        "timing_s": {"read": 1.0, "prepare": 2.0, "infer": 3.0, "total": 6.0},
        "software": {"mtmed3d": "0.1.0", "device": "cpu"},
        "study": study,
    }
    return Findings(**(fields | changes))
