"""``mtmed3d analyze``: one study; several are the matter of `MTMed3DCore.commands.cohort`."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from MTMed3DCore.cohort.studies import Request, is_list, read_list, studies_below
from MTMed3DCore.commands.clinical import (
    add_clinical_options,
    add_file_options,
    add_preparation_options,
    check_clinical_options,
    check_study,
    given_files,
    named_as_asked,
    named_series,
    read_preparations,
    read_prior,
    refuse_existing,
    write_more,
    write_options,
)
from MTMed3DCore.commands.cohort import add_cohort_options, analyze_cohort, refuse_for_one
from MTMed3DCore.commands.console import (
    Subparsers,
    add_compute_options,
    add_output_options,
    new_parser,
    print_table,
    progress_bar,
)
from MTMed3DCore.commands.images import analyze_images, are_images
from MTMed3DCore.errors import InputRefused, WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.networks import TaskNetwork
    from MTMed3DCore.notice import Notice
    from MTMed3DCore.progress import Progress

DESCRIPTION = """\
Analyses studies of four MR sequences. Each CASE is a folder with T1, T1ce, T2 and FLAIR (image files, or one patient's
DICOM study among whatever other series: see `mtmed3d series`), a folder of such folders of image files, a data list of
`mtmed3d datalist`, or a CSV file with one study a row: columns `case`, or `t1`, `t1ce`, `t2` and `flair`; `id` names
the study. Paths are relative to the list. One study is written into OUT itself. Several are written into one subfolder
each, beside summary.csv and overview.html; a study that is refused does not stop the others, and a run that was
interrupted goes on where it stopped.
"""
EPILOG = """\
examples:
  mtmed3d analyze case/ -o results/
  mtmed3d analyze --t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz -o results/
  mtmed3d analyze cohort/* -o results/ --device cuda
  mtmed3d analyze studies.csv -o results/ --json
  mtmed3d analyze list.json -o results/ --cluster local --workers 4
  mtmed3d analyze a.png b.png -o results/ --model runs/isic/bundle

written per study: findings.json, segmentation.nii.gz (1 necrotic core, 2 oedema, 4 enhancing), segmentation.seg.nrrd
and boxes/*.mrk.json for 3D Slicer, preview.png, report.html, report.pdf, and
preparation/ with transforms and brain mask; --dicom adds dicom/*.dcm. For research use only.
"""


@dataclass(frozen=True)
class LoadedModel:
    """A bundle and its network, kept from study to study.

    Args:
        bundle, network: the model.
        device: for `MTMed3DCore.inference.analyze`; the CPU where the memory of the first choice did not suffice.
        notices: which then say so.
    """

    bundle: Bundle
    network: TaskNetwork
    device: str
    notices: tuple[Notice, ...] = ()


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(
        subparsers, "analyze", "find, outline and grade tumours in studies", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument(
        "cases", nargs="*", type=Path, metavar="CASE", help="folder of a study or of studies, or a list of studies"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results")
    add_file_options(parser)
    add_preparation_options(parser)
    add_clinical_options(parser)
    add_cohort_options(parser)
    add_compute_options(parser)
    parser.add_argument(
        "--check-uncertainty",
        action="store_true",
        help="segment the mirror image too and warn where both disagree; takes about as long again",
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--lean",
        dest="mode",
        action="store_const",
        const="lean",
        default="exact",
        help="for models of many windows: segmentation only in those where a glance or a box asks for it; nearly the "
        "same regions (docs/speed.md)",
    )
    modes.add_argument(
        "--quick",
        dest="mode",
        action="store_const",
        const="quick",
        help="for models of many windows: the brain encoded in one pass, segmentation only where a glance or a box "
        "asks for it, bf16 where it pays; results differ (docs/speed.md)",
    )
    parser.add_argument(
        "--compile",
        dest="compiled",
        action="store_true",
        help="have torch compile the network, for many studies on a GPU: the first one then takes minutes longer",
    )
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Analyse every study; returns 0 or the exit code of the first refusal."""
    if are_images(options.cases):
        return analyze_images(options)
    requests, cohort = find_requests(options)
    if not cohort:
        refuse_for_one(options)
        refuse_existing(options.output, options.overwrite)
    check_clinical_options(options, cohort)
    if cohort:
        return analyze_cohort(options, requests)
    (request,) = requests
    findings, path = analyze_one(request, options.output, load_model(options), options)
    if options.json:
        document = json.loads(path.read_text(encoding="utf-8"))
        name = findings.study_id if options.deidentify else request.name
        answer = {"id": name, "output": str(options.output), "findings": document, "error": None}
        print(json.dumps({"studies": [answer]}, indent=2))
    else:
        print_findings(findings, options.output)
    return 0


def load_model(options: argparse.Namespace) -> LoadedModel:
    """The model that the options name, on the device that they name, for every study of the command.

    Raises:
        ModelRefused: there is no such model, or it is damaged.
        WrongUse: an unknown or absent device.
    """
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.inference.computing import load_named

    bundle = find_bundle(options.model)
    network, device, notices = load_named(bundle, options.device)
    return LoadedModel(bundle, network, device, tuple(notices))


def analyze_one(
    request: Request, target: Path, model: LoadedModel, options: argparse.Namespace
) -> tuple[Findings, Path]:
    """Read, analyse and write one study; returns the findings and the path of findings.json."""
    with progress_bar(f"Study {request.name}", not (options.json or options.quiet)) as progress:
        return read_analyze_write(request, target, model, options, progress)


def read_analyze_write(
    request: Request, target: Path, model: LoadedModel, options: argparse.Namespace, progress: Progress
) -> tuple[Findings, Path]:
    """`analyze_one` with a listener of the caller's."""
    from MTMed3DCore.inference import analyze
    from MTMed3DCore.study import Study

    start = perf_counter()
    prior = read_prior(options)
    study = Study.read(request.case, **request.files, series=named_series(options), progress=progress)
    if request.id:
        study = replace(study, id=request.id)
    study = named_as_asked(options, replace(study, warnings=(*study.warnings, *model.notices)))
    check_study(options, study)
    mask, preparation = read_preparations(options, study)
    findings = analyze(
        study,
        model.bundle,
        model.device,
        options.precision,
        progress,
        network=model.network,
        read_s=perf_counter() - start,
        mask=mask,
        preparation=preparation,
        prior=prior,
        mode=options.mode,
        check_uncertainty=options.check_uncertainty,
        compiled=options.compiled,
    )
    path = findings.write(target, overwrite=options.overwrite, progress=progress, **write_options(options))
    write_more(options, findings)
    return findings, path


def find_requests(options: argparse.Namespace) -> tuple[list[Request], bool]:
    """The studies that the options name, and whether they are a cohort.

    Raises:
        WrongUse: neither or both of CASE and files, or a file too few.
        InputRefused: a CASE or list that is not there or not readable.
    """
    if options.output.exists() and not options.output.is_dir():
        raise WrongUse("output-not-folder", f"{options.output} is a file.", "Give a folder for the results.")
    if files := given_files(options):
        return [Request(files=files)], False
    if not options.cases:
        raise WrongUse("usage", "No study is given.", "Give a CASE folder, a list, or --t1 --t1ce --t2 --flair.")
    requests: list[Request] = []
    cohort = len(options.cases) > 1
    for case in options.cases:
        if not case.exists():
            raise InputRefused("case-missing", f"There is no folder {case}.", "Give the folder of a study.")
        several = read_list(case) if is_list(case) else studies_below(case, options.output) if case.is_dir() else []
        requests += several or [Request(case)]
        cohort = cohort or bool(several)
    return requests, cohort


def print_findings(findings: Findings, target: Path) -> None:
    """What was found, where it lies, and that it is for research use only."""
    from MTMed3DCore.findings import RESEARCH_USE

    rows = [
        (
            str(lesion.id),
            f"{lesion.score:.2f}",
            "-" if lesion.probability is None else f"{lesion.probability:.2f}",
            " x ".join(f"{side:.0f}" for side in lesion.box.size),
            f"{lesion.longest_diameter_mm:.0f}",
            *(f"{lesion.volumes_ml.get(region, 0.0):.1f}" for region in ("whole_tumour", "tumour_core", "enhancing")),
        )
        for lesion in findings.lesions
    ]
    if rows:
        headings = ("lesion", "score", "probability", "box mm", "longest mm", "whole ml", "core ml", "enhancing ml")
        print_table(f"Study {findings.study_id}", headings, rows)
    else:
        print(f"Study {findings.study_id}: no tumour found.")
    if findings.grade is not None:
        print(f"Grade {findings.grade.label}, probability of high grade {findings.grade.probability_hgg:.2f}")
    for notice in findings.warnings:
        print(f"warning: {notice.text}")
    print(f"Results in {target}\n{RESEARCH_USE}")
