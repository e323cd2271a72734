"""What the tests of several parts share: small studies on disk, awkward grids, and the way to real studies."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from MTMed3DCore.geometry import Grid
from MTMed3DCore.sequences import SEQUENCES
from Testing.awkward_grids import GRIDS, SHAPE


@pytest.fixture(params=GRIDS)
def grid(request) -> Grid:
    """Each of the awkward grids in turn."""
    return Grid(SHAPE, GRIDS[request.param])


@pytest.fixture
def write_case(tmp_path) -> Callable[..., Path]:
    """Writes a folder of four different NIfTI sequences; single arrays or affines can be replaced by name."""

    def write(affine: np.ndarray | None = None, folder: str = "case", **replaced: np.ndarray) -> Path:
        place = tmp_path / folder
        place.mkdir()
        rng = np.random.default_rng(5)
        for name in SEQUENCES:
            array = replaced.get(name, rng.uniform(1, 100, SHAPE).astype(np.float32))
            nibabel.save(
                nibabel.Nifti1Image(array, GRIDS["axial"] if affine is None else affine), place / f"{name}.nii.gz"
            )
        return place

    return write


@pytest.fixture(scope="session")
def real_cases() -> Path:
    """The folder of real prepared studies, which are not part of the repository."""
    root = Path(os.environ.get("MTMED3D_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not (root / "cases").is_dir():
        pytest.skip(f"no real studies: {root / 'cases'} does not exist (set MTMED3D_DATA)")
    return root / "cases"
