"""``segmentation.nii.gz``: the label map on the T1ce grid as it came in (NIfTI-1, uint8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.findings import Findings
from MTMed3DCore.geometry import Grid

_SCANNER = 1
"""NIFTI_XFORM_SCANNER_ANAT: coordinates of the scanner."""
_AFFINE_TOLERANCE_MM = 1e-3


def write_nifti(findings: Findings, path: Path) -> None:
    """Write the label map of findings; see `save_labels`."""
    save_labels(findings.labels, findings.grid, path)


def save_labels(labels: npt.NDArray[np.uint8], grid: Grid, path: Path) -> None:
    """Write a label map with the sform set to the grid's affine.

    The qform says the same, except on a sheared grid, which a quaternion cannot express: there it stays unset (code 0),
    so that no reader takes an approximation for the truth.
    """
    import nibabel

    affine = grid.affine
    image = nibabel.Nifti1Image(labels, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_intent("label", name="tumour regions")
    image.header["descrip"] = b"MTMed3D; for research use only"
    image.set_sform(affine, code=_SCANNER)
    image.set_qform(affine, code=_SCANNER)
    if np.abs(image.get_qform() - affine).max() > _AFFINE_TOLERANCE_MM:
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
