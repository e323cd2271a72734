"""NIfTI-1 files: label maps, above all ``segmentation.nii.gz`` on the T1ce grid as it came in, and intensities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.findings import Findings
from MTMed3DCore.geometry import Grid

if TYPE_CHECKING:
    from MTMed3DCore.volume import Volume

_SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT: coordinates of the scanner."""
_AFFINE_TOLERANCE_MM = 1e-3


def write_nifti(findings: Findings, path: Path) -> None:
    """Write the label map of findings; see `save_labels`."""
    save_labels(findings.labels, findings.grid, path)


def save_labels(labels: npt.NDArray[np.uint8], grid: Grid, path: Path, what: str = "tumour regions") -> None:
    """Write a label map, with what its values mean in a word or two."""
    import nibabel

    image = nibabel.Nifti1Image(labels, grid.affine)
    image.header.set_intent("label", name=what)
    _save(image, grid, path)


def save_image(volume: Volume, path: Path) -> None:
    """Write intensities as float32."""
    import nibabel

    _save(nibabel.Nifti1Image(np.asarray(volume.array, dtype=np.float32), volume.grid.affine), volume.grid, path)


def _save(image: Any, grid: Grid, path: Path) -> None:
    """Write an image with the sform set to the grid's affine.

    The qform says the same, except on a sheared grid, which a quaternion cannot express: there it stays unset (code 0),
    so that no reader takes an approximation for the truth.
    """
    import nibabel

    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"MTMed3D; for research use only"
    image.set_sform(grid.affine, code=_SCANNER)
    image.set_qform(grid.affine, code=_SCANNER)
    if np.abs(image.get_qform() - grid.affine).max() > _AFFINE_TOLERANCE_MM:
        image.set_qform(None, code=0)
    nibabel.save(image, path)


def read_nifti(path: Path, grid: Grid) -> npt.NDArray[np.uint8]:
    """Read a label map (X, Y, Z) that must lie on `grid`.

    Raises:
        InputRefused: ``segmentation-unreadable``, or ``segmentation-grid`` when its grid is another one.
    """
    import nibabel

    try:
        image = nibabel.Nifti1Image.from_filename(path)
        labels = np.asarray(image.dataobj)
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        remedy = "Restore the file or analyse the study again."
        raise InputRefused("segmentation-unreadable", f"{path} cannot be read: {error}.", remedy) from error
    if labels.shape != grid.shape or not Grid(labels.shape, image.affine).same_as(grid):
        text = f"{path} has shape {labels.shape} or an affine that is not that of findings.json, {grid.shape}."
        raise InputRefused("segmentation-grid", text, "Save the segmentation on the grid of the T1ce volume.")
    return labels.astype(np.uint8)
