"""Synthetic studies as files, in the shape that real prepared studies have on disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.synthetic.study import SyntheticStudy

SCANNER_UNITS = 800.0
"""Stored units of intensity 1."""


def write_study(study: SyntheticStudy, folder: str | Path) -> Path:
    """Write ``t1|t1ce|t2|flair.nii.gz`` (int16), ``seg.nii.gz`` (uint8) and ``truth.json``.

    The folder appears complete or not at all.

    Raises:
        WrongUse: the folder exists and is not empty.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WrongUse("output-exists", f"{target} exists and is not empty.", "Choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        place = Path(temporary) / target.name
        place.mkdir()
        for name, image in zip(SEQUENCES, study.image.cpu().numpy(), strict=True):
            stored = np.clip(np.rint(image * SCANNER_UNITS), 0, 32767).astype(np.int16)
            nibabel.save(_nifti(stored, study), place / f"{name}.nii.gz")
        nibabel.save(_nifti(study.labels.cpu().numpy(), study), place / "seg.nii.gz")
        truth = {
            "synthetic": True,
            "seed": study.seed,
            "family": study.family,
            "grade": None if study.grade is None else ("LGG", "HGG")[study.grade],
            "lesions": [_box(study, index) for index in range(len(study.boxes))],
        }
        (place / "truth.json").write_text(json.dumps(truth, indent=2))
        if target.exists():
            target.rmdir()
        place.rename(target)
    return target


def _nifti(array: np.ndarray, study: SyntheticStudy) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(array, study.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(study.affine, 1)
    image.set_qform(study.affine, 1)
    return image


def _box(study: SyntheticStudy, index: int) -> dict[str, list[float] | list[list[float]]]:
    box = study.boxes[index]
    world = box.to_world(study.grid)
    return {
        "voxel_box": box.to_list(),
        "center_ras_mm": world.center.tolist(),
        "size_mm": world.size.tolist(),
        "axes_ras": world.axes.tolist(),
    }
