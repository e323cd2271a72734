"""The options of ``mtmed3d analyze`` for clinical studies: which series, DICOM objects, a BIDS dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.errors import InputRefused, WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.study import Study

CHANNELS = ("t1", "t1ce", "t2", "flair")
KINDS = ("BINARY", "LABELMAP")
"""Of `MTMed3DCore.exports.dicom_seg`, named here so that the help loads no numpy."""


def add_clinical_options(parser: argparse.ArgumentParser) -> None:
    """``--series``, ``--dicom``, ``--bids``."""
    group = parser.add_argument_group("DICOM and BIDS")
    group.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="take this DICOM series for a sequence, for example t1ce=7; see `mtmed3d series CASE`",
    )
    group.add_argument(
        "--dicom",
        nargs="?",
        const="BINARY",
        choices=KINDS,
        help="add dicom/: segmentation (BINARY unless LABELMAP is said), structured report, report; needs DICOM input",
    )
    group.add_argument("--bids", type=Path, metavar="DATASET", help="add the result to a dataset of BIDS derivatives")


def check_clinical_options(options: argparse.Namespace, cohort: bool) -> None:
    """Refuse before any work what these options cannot do.

    Raises:
        WrongUse: ``usage``, ``dicom-support`` or ``bids-not-ours``.
    """
    if named_series(options) and (cohort or not options.cases):
        raise WrongUse("usage", "--series belongs to one CASE folder of DICOM files.", "Analyse it on its own.")
    if getattr(options, "dicom", None):
        from MTMed3DCore.exports.dicom import check_dicom_export

        check_dicom_export(options.dicom)
    if getattr(options, "bids", None):
        from MTMed3DCore.exports.bids import check_dataset

        check_dataset(options.bids)


def named_series(options: argparse.Namespace) -> dict[str, str]:
    """The series of each sequence that ``--series`` names.

    Raises:
        WrongUse: ``usage``, not NAME=NUMBER, an unknown name, or one given twice.
    """
    named: dict[str, str] = {}
    for text in getattr(options, "series", None) or []:
        name, _, number = text.partition("=")
        name = name.strip().lower()
        if name not in CHANNELS or not number.strip() or name in named:
            remedy = f"Give each of {', '.join(CHANNELS)} once at most, for example --series t1ce=7."
            raise WrongUse("usage", f"--series {text} is not NAME=NUMBER.", remedy)
        named[name] = number.strip()
    return named


def check_study(options: argparse.Namespace, study: Study) -> None:
    """Refuse a study whose result could not be written as asked, before it is analysed.

    Raises:
        InputRefused: ``dicom-source`` or ``bids-label``.
    """
    if getattr(options, "dicom", None) and not study.series:
        text = f"The study {study.id} did not come as DICOM, so there is no series that DICOM objects could refer to."
        raise InputRefused("dicom-source", text, "Give the folder of DICOM files, or leave --dicom out.")
    if getattr(options, "bids", None):
        from MTMed3DCore.exports.bids import subject_label

        subject_label(study.id)


def write_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `Findings.write` is told."""
    return {"dicom": getattr(options, "dicom", None)}


def write_more(options: argparse.Namespace, findings: Findings) -> None:
    """What is written outside the output folder."""
    if getattr(options, "bids", None):
        from MTMed3DCore.exports.bids import write_bids

        write_bids(findings, options.bids, overwrite=options.overwrite)
