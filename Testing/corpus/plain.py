"""The plain study that every case spoils: a small head with fluid, two tissues and a tumour, coarse but complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

SHAPE = (40, 44, 36)
SPACING_MM = 4.0
AFFINE = np.array([[SPACING_MM, 0, 0, -78.0], [0, SPACING_MM, 0, -86.0], [0, 0, SPACING_MM, -70.0], [0, 0, 0, 1.0]])
# fluid, grey matter, white matter, oedema, enhancing tumour
INTENSITIES = {
    "t1": (150, 450, 650, 380, 360),
    "t1ce": (150, 460, 660, 390, 1000),
    "t2": (1000, 560, 380, 800, 700),
    "flair": (150, 560, 420, 850, 700),
}


def sequence(name: str, shape: tuple[int, int, int] = SHAPE) -> npt.NDArray[np.int16]:
    """Values of one sequence, skull-stripped: zero outside the head."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt((x / 0.85) ** 2 + (y / 0.9) ** 2 + (z / 0.85) ** 2)
    tissue = np.where(np.sin(9 * x) + np.sin(11 * y + 1) + np.sin(7 * z) > 0, 2, 1)
    tissue[(np.abs(x) < 0.2) & (np.abs(y) < 0.4) & (np.abs(z) < 0.25)] = 0
    distance = np.sqrt((x - 0.4) ** 2 + (y - 0.1) ** 2 + (z - 0.2) ** 2)
    tissue[distance < 0.32] = 3
    tissue[distance < 0.18] = 4
    values = np.asarray(INTENSITIES[name])[tissue] + 12 * np.random.default_rng(len(name)).standard_normal(shape)
    return np.where(radius < 1, values, 0).round().astype(np.int16)


def write_plain(folder: Path) -> Path:
    """Write the plain study as four NIfTI files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in INTENSITIES:
        save(folder / f"{name}.nii.gz", sequence(name))
    return folder


def save(file: Path, array: npt.NDArray[Any], affine: npt.NDArray[np.float64] = AFFINE) -> Path:
    """A NIfTI file whose sform and qform agree."""
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    nibabel.save(image, file)
    return file
