"""What ``mtmed3d analyze`` and ``mtmed3d prepare`` share of clinical studies: files, series, masks, DICOM, BIDS."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.cohort.studies import CHANNELS
from MTMed3DCore.errors import InputRefused, WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.preparation.record import PreparationRecord
    from MTMed3DCore.study import Study

KINDS = ("BINARY", "LABELMAP")
"""Of `MTMed3DCore.exports.dicom_seg`, named here so that the help loads no numpy."""


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """``--t1``, ``--t1ce``, ``--t2``, ``--flair``."""
    group = parser.add_argument_group("files of one study, instead of CASE")
    for channel in CHANNELS:
        group.add_argument(f"--{channel}", type=Path, metavar="FILE")


def given_files(options: argparse.Namespace) -> dict[str, Path]:
    """The files that the user named, by sequence; empty where a CASE is given instead.

    Raises:
        WrongUse: ``usage``, both are given, or some sequences and not all.
    """
    files = {channel: path for channel in CHANNELS if (path := getattr(options, channel)) is not None}
    if files and options.cases:
        raise WrongUse("usage", "Both CASE and files are given.", "Give either CASE, or the four files.")
    missing = [f"--{channel}" for channel in CHANNELS if channel not in files]
    if files and missing:
        raise WrongUse("usage", f"A study has four sequences; {', '.join(missing)} is not given.")
    return files


def add_series_option(group: Any) -> None:
    """``--series``, in a parser or a group of one."""
    group.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="take this DICOM series for a sequence, for example t1ce=7; see `mtmed3d series CASE`",
    )


def add_mask_option(group: Any) -> None:
    """``--mask``, in a parser or a group of one."""
    group.add_argument("--mask", type=Path, metavar="FILE", help="brain mask in the space of the T1ce, instead of ours")


def add_preparation_option(group: Any) -> None:
    """``--preparation``, in a parser or a group of one."""
    group.add_argument(
        "--preparation", type=Path, metavar="FOLDER", help="use transforms and mask of an earlier result again"
    )


def add_preparation_options(parser: argparse.ArgumentParser) -> None:
    """``--mask``, ``--preparation``, ``--prior``."""
    group = parser.add_argument_group("preparation and comparison, for one study")
    add_mask_option(group)
    add_preparation_option(group)
    group.add_argument("--prior", type=Path, metavar="FOLDER", help="earlier result of this patient to compare with")


def read_prior(options: argparse.Namespace) -> Findings | None:
    """The earlier result that ``--prior`` names."""
    place: Path | None = getattr(options, "prior", None)
    if place is None:
        return None
    from MTMed3DCore.exports import read_findings

    return read_findings(place)


def read_preparations(options: argparse.Namespace, study: Study) -> tuple[Any, PreparationRecord | None]:
    """The brain mask that ``--mask`` names and the preparation that ``--preparation`` names."""
    mask: Path | None = getattr(options, "mask", None)
    earlier: Path | None = getattr(options, "preparation", None)
    if mask is None and earlier is None:
        return None, None
    from MTMed3DCore.preparation.record import read_mask, read_preparation

    return (
        None if mask is None else read_mask(mask, study.grid),
        None if earlier is None else read_preparation(earlier, study.grid),
    )


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuse before any work is done what writing would refuse after it.

    Raises:
        WrongUse: `target` is a file, or something lies in it that is not to be replaced.
    """
    if target.exists() and not target.is_dir():
        raise WrongUse("output-not-folder", f"{target} is a file.", "Give a folder for the results.")
    if not overwrite and target.is_dir() and any(not path.name.startswith(".") for path in target.iterdir()):
        text = f"The output folder {target} is not empty."
        raise WrongUse("output-not-empty", text, "Give another folder, or --overwrite to replace earlier results.")


def add_clinical_options(parser: argparse.ArgumentParser) -> None:
    """``--series``, ``--dicom``, ``--bids``."""
    group = parser.add_argument_group("DICOM and BIDS")
    add_series_option(group)
    group.add_argument(
        "--dicom",
        nargs="?",
        const="BINARY",
        choices=KINDS,
        help="add dicom/: segmentation (BINARY unless LABELMAP is said), structured report, report; needs DICOM input",
    )
    group.add_argument("--bids", type=Path, metavar="DATASET", help="add the result to a dataset of BIDS derivatives")
    group.add_argument("--deidentify", metavar="NAME", help="write nothing that names the patient; NAME stands for it")


def check_clinical_options(options: argparse.Namespace, cohort: bool) -> None:
    """Refuse before any work what these options cannot do.

    Raises:
        WrongUse: ``usage``, ``dicom-support`` or ``bids-not-ours``.
    """
    if named_series(options) and (cohort or not options.cases):
        raise WrongUse("usage", "--series belongs to one CASE folder of DICOM files.", "Analyse it on its own.")
    if getattr(options, "deidentify", None) and (cohort or getattr(options, "prior", None)):
        text = "--deidentify belongs to one study, without --prior: an earlier result may name the patient."
        raise WrongUse("usage", text, "Analyse each study on its own, with a name of its own.")
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


def named_as_asked(options: argparse.Namespace, study: Study) -> Study:
    """The study, or with ``--deidentify`` one that names nobody."""
    pseudonym: str | None = getattr(options, "deidentify", None)
    if pseudonym is None:
        return study
    from MTMed3DCore.exports.deidentify import deidentified_study

    return deidentified_study(study, pseudonym)


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
