"""What the preparation of a study did, written down so that it can be looked at, corrected and used again.

==========================  =======================================================================================
``preparation.json``        source of the brain mask, figures of every registration, grids; schema in the documentation
``t1_to_t1ce.tfm`` ...      rigid transforms for ITK and 3D Slicer: T1ce mm (LPS) to the sequence's mm
``brain_mask.nii.gz``       on the T1ce grid as it came in
==========================  =======================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.geometry import FloatArray, Grid

SCHEMA = "mtmed3d.preparation/1"
RECORD, MASK = "preparation.json", "brain_mask.nii.gz"
UNCHANGED = 1e-4
"""Difference in any number of a transform's matrix from which its file counts as corrected."""
BRAIN_SOURCES: Mapping[str, str] = {
    "given": "given by the user",
    "stripped": "the study came skull-stripped",
    "hd-bet": "HD-BET",
    "synthstrip": "SynthStrip",
    "built-in": "built-in method, approximate",
    "head": "whole head; no brain could be told from it",
}
"""Where a brain mask comes from, in words."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Where a sequence lies against the T1ce, and how sure that is.

    Args:
        sequence: its name.
        matrix: 4 x 4, RAS mm of the T1ce to RAS mm of the sequence: the direction in which resampling asks.
        method: ``"mutual-information"``, ``"header"`` (the scanner's word was taken) or ``"given"``.
        verdict: ``"good"``, ``"doubtful"``, ``"failed"`` or ``"not-needed"``.
        disagreement_mm: mean distance over the head between this run and its repeat; None where none was run.
        mutual_information: in nats, of the two images at `matrix`; None where none was measured.
        mutual_information_header: the same at the scanner's word.
        rotation_deg, translation_mm: how far the sequence was moved; the translation is that of the head's middle.
    """

    sequence: str
    matrix: FloatArray
    method: str
    verdict: str
    disagreement_mm: float | None = None
    mutual_information: float | None = None
    mutual_information_header: float | None = None
    rotation_deg: float = 0.0
    translation_mm: float = 0.0

    @property
    def moves(self) -> bool:
        """Whether the sequence lies elsewhere than its header says."""
        return not np.allclose(self.matrix, np.eye(4), atol=1e-9)


@dataclass(frozen=True, eq=False)
class PreparationRecord:
    """What was done to a study before the network saw it.

    Args:
        native: the T1ce grid as it came in.
        working: the grid that the network saw.
        brain: bool (X, Y, Z) on `native`; None where only the figures were read back.
        brain_source: a key of `BRAIN_SOURCES`.
        registrations: one for each sequence but the T1ce.
        recorded_ml: volume of the brain mask as it was recorded; by default that of `brain`.
    """

    native: Grid
    working: Grid
    brain: npt.NDArray[np.bool_] | None
    brain_source: str
    registrations: tuple[Registration, ...]
    recorded_ml: float | None = None

    @property
    def brain_ml(self) -> float:
        """Volume of the brain mask that was used."""
        if self.recorded_ml is not None or self.brain is None:
            return self.recorded_ml or 0.0
        return float(self.brain.sum()) * self.native.voxel_volume_ml

    def document(self) -> dict[str, Any]:
        """The record as the JSON object that ``findings.json`` and ``preparation.json`` hold."""
        return {
            "brain_mask": {"source": self.brain_source, "volume_ml": self.brain_ml},
            "registrations": [
                {
                    "sequence": each.sequence,
                    "method": each.method,
                    "verdict": each.verdict,
                    "disagreement_mm": each.disagreement_mm,
                    "mutual_information": each.mutual_information,
                    "mutual_information_header": each.mutual_information_header,
                    "rotation_deg": each.rotation_deg,
                    "translation_mm": each.translation_mm,
                    "t1ce_to_sequence_ras": np.asarray(each.matrix).tolist(),
                }
                for each in self.registrations
            ],
            "working_grid": _grid_document(self.working),
        }


def document_record(
    document: Mapping[str, Any], native: Grid, brain: npt.NDArray[np.bool_] | None
) -> PreparationRecord:
    """The way back from `PreparationRecord.document`.

    Args:
        document: of ``findings.json``, checked against its schema.
        native: the T1ce grid.
        brain: the mask that lies beside it, or None where there is none.
    """
    registrations = []
    for entry in document["registrations"]:
        values = dict(entry)
        matrix = np.array(values.pop("t1ce_to_sequence_ras"), dtype=np.float64)
        registrations.append(Registration(matrix=matrix, **values))
    mask = document["brain_mask"]
    working = _grid(document["working_grid"])
    return PreparationRecord(native, working, brain, mask["source"], tuple(registrations), mask["volume_ml"])


def write_preparation(record: PreparationRecord, folder: Path) -> None:
    """Write transforms, mask and figures into a folder, which is made.

    Raises:
        ValueError: the record holds no mask.
    """
    import nibabel
    import SimpleITK as sitk

    if record.brain is None:
        raise ValueError("a preparation without its brain mask cannot be used again, so it is not written")

    folder.mkdir(parents=True, exist_ok=True)
    for each in record.registrations:
        sitk.WriteTransform(itk_transform(each.matrix), str(folder / f"{each.sequence}_to_t1ce.tfm"))
    mask = nibabel.Nifti1Image(record.brain.astype(np.uint8), record.native.affine)
    nibabel.save(mask, folder / MASK)
    document = {"schema": SCHEMA, "t1ce_grid": _grid_document(record.native), **record.document()}
    text = json.dumps(document, indent=2, allow_nan=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_preparation(folder: str | Path, native: Grid) -> PreparationRecord:
    """Read what `write_preparation` wrote, the mask with any edits that were made to it.

    Transforms come from the ``.tfm`` files, so that a corrected one counts; it then has the method ``"given"`` and none
    of the figures of the one that it replaces.

    Args:
        folder: a preparation folder, or the output folder of an analysis that holds one.
        native: the T1ce grid of the study that it is to be used for.

    Raises:
        InputRefused: ``preparation-missing``, ``preparation-invalid`` or ``preparation-grid``.
    """
    import SimpleITK as sitk

    place = Path(folder)
    place = place if (place / RECORD).is_file() else place / "preparation"
    try:
        document = json.loads((place / RECORD).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema {document['schema']!r}, not {SCHEMA!r}")
        grid, working = (_grid(document[key]) for key in ("t1ce_grid", "working_grid"))
        source = str(document["brain_mask"]["source"])
        registrations = []
        for entry in document["registrations"]:
            transform = sitk.ReadTransform(str(place / f"{entry['sequence']}_to_t1ce.tfm"))
            registrations.append(_as_it_is_now(entry, ras_matrix(transform)))
    except OSError as error:
        text = f"{folder} holds no preparation: {error}."
        raise InputRefused("preparation-missing", text, "Name the output folder of an earlier analysis.") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        text = f"The preparation in {place} cannot be read: {error}."
        raise InputRefused("preparation-invalid", text, "Leave --preparation away to prepare anew.") from error
    if not grid.same_as(native):
        text = f"The preparation in {place} belongs to a T1ce of {grid.shape} voxels in another place."
        raise InputRefused("preparation-grid", text, "Give the preparation of this very study.")
    return PreparationRecord(native, working, read_mask(place / MASK, native), source, tuple(registrations))


def read_mask(path: str | Path, native: Grid) -> npt.NDArray[np.bool_]:
    """A brain mask on the T1ce grid; one on another grid of the same space is brought there.

    Raises:
        InputRefused: what `read_volume` refuses, or ``mask-empty`` where nothing of it lies on the T1ce grid.
    """
    from MTMed3DCore.volume import Volume, read_volume, resample

    volume = read_volume(path)
    # Masks hold 0 and 1, or 0 and 255: whatever is not background is brain.
    inside = Volume((volume.array > 0).astype(np.float32), volume.grid)
    if not volume.grid.same_as(native):
        inside = resample(inside, native)
    mask: npt.NDArray[np.bool_] = inside.array >= 0.5
    if not mask.any():
        text = f"The brain mask {path} marks no voxel of the T1ce."
        raise InputRefused("mask-empty", text, "Give a mask that was made on the T1ce of this study.")
    return mask


def _as_it_is_now(entry: Mapping[str, Any], matrix: FloatArray) -> Registration:
    """A recorded registration with the matrix of its file, which somebody may have corrected."""
    values = dict(entry)
    recorded = np.array(values.pop("t1ce_to_sequence_ras"), dtype=np.float64)
    if np.allclose(matrix, recorded, atol=UNCHANGED):
        return Registration(matrix=matrix, **values)
    return Registration(str(entry["sequence"]), matrix, "given", "not-needed")


def itk_transform(matrix: FloatArray) -> Any:
    """A 4 x 4 RAS matrix as a SimpleITK affine transform, LPS mm."""
    import SimpleITK as sitk

    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    lps = flip @ matrix @ flip
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def ras_matrix(transform: Any) -> FloatArray:
    """The 4 x 4 RAS matrix of a linear ITK transform."""
    lps = np.eye(4)
    lps[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis, unit in enumerate(np.eye(3).tolist()):
        lps[:3, axis] = np.subtract(transform.TransformPoint(unit), lps[:3, 3])
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    return np.asarray(flip @ lps @ flip)


def _grid_document(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine_ras": np.asarray(grid.affine).tolist()}


def _grid(document: Mapping[str, Any]) -> Grid:
    x, y, z = document["shape"]
    return Grid((x, y, z), np.array(document["affine_ras"], dtype=np.float64))
