"""BIDS derivatives: results of many studies as one dataset (https://bids-specification.readthedocs.io).

=============================================================  ========================================
``dataset_description.json``, ``README``                       what made the dataset
``sub-X/anat/sub-X_space-orig_desc-tumour_dseg.nii.gz``        1 necrotic core, 2 oedema, 4 enhancing
``sub-X/anat/sub-X_space-orig_desc-tumour_dseg.json``          what it is of, and the findings
``sub-X/anat/sub-X_space-orig_desc-tumour_dseg.tsv``           names and colours of the values
``sub-X/anat/sub-X_space-orig_label-wholetumour_mask.nii.gz``  unions: wholetumour, tumourcore
=============================================================  ========================================

``space-orig`` is the grid of the T1ce as it came in.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore import __version__
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.exports.atomic import publishing
from MTMed3DCore.exports.json_file import findings_document
from MTMed3DCore.exports.nifti import save_labels, write_nifti
from MTMed3DCore.exports.regions import REGIONS
from MTMed3DCore.findings import REGION_LABELS, RESEARCH_USE, Findings

DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
PIPELINE = "MTMed3D"
README = f"""\
Brain tumour regions found by {PIPELINE}, one folder a study. The findings (boxes, scores, grade, measurements) stand in
the JSON file beside each segmentation, under "Findings". {RESEARCH_USE}
"""
UNIONS = {"wholetumour": "whole_tumour", "tumourcore": "tumour_core"}
ABBREVIATIONS = {"necrotic_core": "NCR", "oedema": "ED", "enhancing": "ET"}


def subject_label(study_id: str) -> str:
    """The letters and digits of a study's name, which is all that a BIDS label may hold.

    Raises:
        InputRefused: ``bids-label``, there are none.
    """
    label = re.sub(r"[^A-Za-z0-9]", "", study_id)
    if not label:
        text = f"The study's name {study_id!r} has no letter or digit, and a BIDS label is made of them."
        raise InputRefused("bids-label", text, "Rename the study's folder, or name it by `id` in a CSV list.")
    return label


def check_dataset(root: Path) -> None:
    """Refuse a folder that derivatives of this program cannot be added to.

    Raises:
        WrongUse: ``bids-not-ours``, a dataset of something else or a folder that holds other files.
    """
    description = root / DESCRIPTION
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    try:
        made_by = [str(each["Name"]) for each in json.loads(description.read_text(encoding="utf-8"))["GeneratedBy"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        text = f"{root} is not empty and no dataset of BIDS derivatives of {PIPELINE}."
        raise WrongUse("bids-not-ours", text, "Give a new folder, for example DATASET/derivatives/mtmed3d.") from error
    if PIPELINE not in made_by:
        text = f"{root} is a dataset of {', '.join(made_by) or 'nobody'}, not of {PIPELINE}."
        raise WrongUse("bids-not-ours", text, "Give a folder of its own, for example DATASET/derivatives/mtmed3d.")


def write_bids(findings: Findings, root: str | Path, *, overwrite: bool = False) -> Path:
    """Add one study to a dataset of derivatives, which is begun if need be.

    Args:
        findings: what was found.
        root: folder of the dataset.
        overwrite: replace an earlier result of the same study.

    Returns:
        The subject's folder.

    Raises:
        WrongUse: ``bids-not-ours``, or the subject's folder cannot be taken, see `atomic.publishing`.
        InputRefused: ``bids-label``; ``bids-subject``, another study has the same label.
    """
    dataset = Path(root)
    check_dataset(dataset)
    label = subject_label(findings.study_id)
    folder = dataset / f"sub-{label}"
    stem = f"sub-{label}_space-orig"
    _refuse_other_study(folder / "anat" / f"{stem}_desc-tumour_dseg.json", findings.study_id)
    dataset.mkdir(parents=True, exist_ok=True)
    if not (dataset / DESCRIPTION).exists():
        (dataset / "README").write_text(README, encoding="utf-8", newline="\n")
        _write_json(_description(dataset), dataset / DESCRIPTION)
    last = f"anat/{stem}_desc-tumour_dseg.json"
    with publishing(folder, overwrite=overwrite, last=last) as partial:
        anat = partial / "anat"
        anat.mkdir()
        write_nifti(findings, anat / f"{stem}_desc-tumour_dseg.nii.gz")
        (anat / f"{stem}_desc-tumour_dseg.tsv").write_text(_table(), encoding="utf-8", newline="\n")
        for name, region in UNIONS.items():
            mask = np.isin(findings.labels, REGION_LABELS[region]).astype(np.uint8)
            save_labels(mask, findings.grid, anat / f"{stem}_label-{name}_mask.nii.gz")
            sources = [f"bids::sub-{label}/anat/{stem}_desc-tumour_dseg.nii.gz"]
            sidecar = {**_sidecar(findings), "Type": "Lesion", "Sources": sources}
            _write_json(sidecar, anat / f"{stem}_label-{name}_mask.json")
        document = findings_document(findings)
        _write_json({**_sidecar(findings), "Findings": document}, partial / last)
    return folder


def _description(dataset: Path) -> dict[str, Any]:
    """What the specification requires of a derivative, and what it recommends as far as this program can know it.

    Authors and licence are the user's to say. The source is named where the dataset lies where the specification puts
    it: in ``derivatives/`` of the raw dataset.
    """
    description: dict[str, Any] = {
        "Name": "Brain tumour regions, boxes and grades by MTMed3D",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": PIPELINE, "Version": __version__, "Description": RESEARCH_USE}],
    }
    parent = dataset.resolve().parent
    if parent.name == "derivatives" and (parent.parent / DESCRIPTION).is_file():
        description["SourceDatasets"] = [{"URL": "../../"}]
        description["DatasetLinks"] = {"raw": "../../"}
    return description


def _sidecar(findings: Findings) -> dict[str, Any]:
    return {
        "Description": f"Brain tumour found by {PIPELINE}. {RESEARCH_USE}",
        "SpatialReference": "orig",
        "Manual": findings.regions_by == "reader",
        "Model": {"Name": findings.model.name, "Version": findings.model.version, "SHA256": findings.model.sha256},
        "StudyID": findings.study_id,
    }


def _table() -> str:
    rows = ["index\tname\tabbreviation\tcolor"]
    for region in REGIONS:
        color = "#{:02X}{:02X}{:02X}".format(*region.color)
        rows.append(f"{region.label}\t{region.name}\t{ABBREVIATIONS[region.key]}\t{color}")
    return "\n".join(rows) + "\n"


def _refuse_other_study(sidecar: Path, study_id: str) -> None:
    if not sidecar.is_file():
        return
    other = json.loads(sidecar.read_text(encoding="utf-8")).get("StudyID")
    if other != study_id:
        text = f"The studies {other!r} and {study_id!r} would have the same BIDS label."
        raise InputRefused("bids-subject", text, "Name one of them otherwise, by its folder or by `id` in a CSV list.")


def _write_json(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
