"""``mtmed3d analyze``: one study, or a cohort with one subfolder a study."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.clinical import (
    add_clinical_options,
    check_clinical_options,
    check_study,
    named_series,
    write_more,
    write_options,
)
from MTMed3DCore.commands.console import (
    Subparsers,
    add_compute_options,
    add_output_options,
    new_parser,
    print_table,
    progress_bar,
)
from MTMed3DCore.commands.images import analyze_images, are_images
from MTMed3DCore.errors import Cancelled, InputRefused, ModelRefused, MTMed3DError, WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.networks import TaskNetwork
    from MTMed3DCore.preparation.record import PreparationRecord
    from MTMed3DCore.progress import Progress
    from MTMed3DCore.study import Study

CHANNELS = ("t1", "t1ce", "t2", "flair")
"""The sequences; `MTMed3DCore.sequences.SEQUENCES`, named here so that the help loads no numpy."""
DESCRIPTION = """\
Analyses studies of four MR sequences. Each CASE is a folder with T1, T1ce, T2 and FLAIR (image files, or one patient's
DICOM study among whatever other series: see `mtmed3d series`), or a CSV file with one study a row: columns `case`, or
`t1`, `t1ce`, `t2` and `flair`; `id` names the study. Paths are relative to the CSV file.
One study is written into OUT itself, several into one subfolder each; a study that is refused does not stop the others.
"""
EPILOG = """\
examples:
  mtmed3d analyze case/ -o results/
  mtmed3d analyze --t1 a.nii.gz --t1ce b.nii.gz --t2 c.nii.gz --flair d.nii.gz -o results/
  mtmed3d analyze cohort/* -o results/ --device cuda
  mtmed3d analyze studies.csv -o results/ --json
  mtmed3d analyze a.png b.png -o results/ --model runs/isic/bundle

written per study: findings.json, segmentation.nii.gz (1 necrotic core, 2 oedema, 4 enhancing), segmentation.seg.nrrd
and boxes/*.mrk.json for 3D Slicer, preview.png, report.html, report.pdf, and
preparation/ with transforms and brain mask; --dicom adds dicom/*.dcm. For research use only.
"""


@dataclass(frozen=True)
class Request:
    """One study to analyse.

    Args:
        case: its folder, or None.
        files: path of each sequence where there is no folder.
        id: its name where the user gave one.
    """

    case: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)
    id: str = ""

    @property
    def name(self) -> str:
        """What the study is called before it is read: for messages and for its subfolder."""
        if self.id:
            return self.id
        source = self.case or self.files["t1ce"]
        return source.resolve().name.split(".")[0] if source.is_file() else source.resolve().name


@dataclass(frozen=True)
class LoadedModel:
    """A bundle and its network, kept from study to study."""

    bundle: Bundle
    network: TaskNetwork


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(
        subparsers, "analyze", "find, outline and grade tumours in studies", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument(
        "cases", nargs="*", type=Path, metavar="CASE", help="folder of a study, or a CSV file of studies"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results")
    files = parser.add_argument_group("files of one study, instead of CASE")
    for channel in CHANNELS:
        files.add_argument(f"--{channel}", type=Path, metavar="FILE")
    more = parser.add_argument_group("preparation and comparison, for one study")
    more.add_argument("--mask", type=Path, metavar="FILE", help="brain mask in the space of the T1ce, instead of ours")
    more.add_argument(
        "--preparation", type=Path, metavar="FOLDER", help="use transforms and mask of an earlier result again"
    )
    more.add_argument("--prior", type=Path, metavar="FOLDER", help="earlier result of this patient to compare with")
    add_clinical_options(parser)
    add_compute_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Analyse every study; returns 0 or the exit code of the first refusal."""
    if are_images(options.cases):
        return analyze_images(options)
    requests, cohort = find_requests(options)
    targets = [options.output / request.name if cohort else options.output for request in requests]
    if cohort:
        refuse_for_cohort(options)
    else:
        refuse_existing(targets[0], options.overwrite)
    check_clinical_options(options, cohort)
    model = load_model(options)
    answers: list[dict[str, Any]] = []
    code = 0
    for request, target in zip(requests, targets, strict=True):
        answer: dict[str, Any] = {"id": request.name, "output": str(target), "findings": None, "error": None}
        try:
            if cohort:
                refuse_existing(target, options.overwrite)
            findings, path = analyze_one(request, target, model, options)
            answer["findings"] = json.loads(path.read_text(encoding="utf-8"))
            if not options.json:
                print_findings(findings, target)
        except (Cancelled, ModelRefused):
            raise  # neither would be different for the next study
        except MTMed3DError as error:
            if not cohort:
                raise
            print(f"error: {request.name}: {error}", file=sys.stderr)
            answer["error"] = {"code": error.code, "text": error.text, "remedy": error.remedy}
            code = code or error.exit_code
        answers.append(answer)
    if options.json:
        print(json.dumps({"studies": answers}, indent=2))
    elif cohort:
        done = sum(answer["error"] is None for answer in answers)
        print(f"{done} of {len(answers)} studies analysed; results in {options.output}")
    return code


def load_model(options: argparse.Namespace) -> LoadedModel:
    """The model that the options name, on the device that they name, for every study of the command.

    Raises:
        ModelRefused: there is no such model, or it is damaged.
        WrongUse: an unknown or absent device.
    """
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.inference.pipeline import choose_device

    bundle = find_bundle(options.model)
    return LoadedModel(bundle, bundle.load(choose_device(options.device)))


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
    check_study(options, study)
    mask, preparation = read_preparations(options, study)
    findings = analyze(
        study,
        model.bundle,
        options.device,
        options.precision,
        progress,
        network=model.network,
        read_s=perf_counter() - start,
        mask=mask,
        preparation=preparation,
        prior=prior,
    )
    path = findings.write(target, overwrite=options.overwrite, progress=progress, **write_options(options))
    write_more(options, findings)
    return findings, path


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


def refuse_for_cohort(options: argparse.Namespace) -> None:
    """Refuse what belongs to one study where several are given."""
    for name in ("mask", "preparation", "prior"):
        if getattr(options, name, None) is not None:
            raise WrongUse("usage", f"--{name} belongs to one study, and several are given.", "Analyse it on its own.")


def find_requests(options: argparse.Namespace) -> tuple[list[Request], bool]:
    """The studies that the options name, and whether they are a cohort.

    Raises:
        WrongUse: neither or both of CASE and files, a file too few, or two studies of one name.
        InputRefused: a CASE or CSV file that is not there or not readable.
    """
    files = {channel: path for channel in CHANNELS if (path := getattr(options, channel)) is not None}
    if options.output.exists() and not options.output.is_dir():
        raise WrongUse("output-not-folder", f"{options.output} is a file.", "Give a folder for the results.")
    if files and options.cases:
        raise WrongUse("usage", "Both CASE and files are given.", "Give either CASE, or the four files.")
    if files:
        missing = [f"--{channel}" for channel in CHANNELS if channel not in files]
        if missing:
            raise WrongUse("usage", f"A study has four sequences; {', '.join(missing)} is not given.")
        return [Request(files=files)], False
    if not options.cases:
        raise WrongUse("usage", "No study is given.", "Give a CASE folder, a CSV file, or --t1 --t1ce --t2 --flair.")
    requests: list[Request] = []
    for case in options.cases:
        if not case.exists():
            raise InputRefused("case-missing", f"There is no folder {case}.", "Give the folder of a study.")
        requests += read_list(case) if case.suffix.lower() == ".csv" else [Request(case)]
    cohort = len(options.cases) > 1 or options.cases[0].suffix.lower() == ".csv"
    names = [request.name for request in requests]
    twice = sorted({name for name in names if names.count(name) > 1})
    if cohort and twice:
        text = f"More than one study is called {', '.join(twice)}, so their results would share a folder."
        raise WrongUse("study-name-twice", text, "List them in a CSV file with a column `id`.")
    return requests, cohort


def read_list(path: Path) -> list[Request]:
    """The studies of a CSV file.

    Raises:
        InputRefused: no rows, unknown columns, an empty cell, or an id that is no folder name.
    """
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        try:
            rows = list(reader)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputRefused("list-unreadable", f"{path} is no readable CSV file: {error}.") from error
    columns = {str(column).strip().lower(): column for column in reader.fieldnames or ()}
    wanted: Sequence[str] = ("case",) if "case" in columns else CHANNELS
    missing = [column for column in wanted if column not in columns]
    if missing:
        text = f"{path} has the columns {', '.join(columns) or 'none'}; missing: {', '.join(missing)}."
        raise InputRefused("list-columns", text, "Give a column `case`, or the columns t1, t1ce, t2 and flair.")
    if not rows:
        raise InputRefused("list-empty", f"{path} names no study.", "Give one study a row below the headings.")
    return [_request(path, number, row, columns, wanted) for number, row in enumerate(rows, start=2)]


def _request(path: Path, number: int, row: dict[Any, Any], columns: dict[str, str], wanted: Sequence[str]) -> Request:
    cells = {name: (row.get(columns[name]) or "").strip() for name in (*wanted, *(["id"] if "id" in columns else []))}
    empty = [name for name, cell in cells.items() if not cell]
    if empty:
        raise InputRefused("list-cell", f"Line {number} of {path} has nothing under {', '.join(empty)}.")
    study_id = cells.pop("id", "")
    if study_id in {".", ".."} or set(study_id) & set('/\\:*?"<>|'):
        text = f"Line {number} of {path} has the id {study_id!r}, which cannot be the name of a folder."
        raise InputRefused("list-id", text, "Use letters, digits, dots, dashes and underscores.")
    paths = {name: path.parent / cell for name, cell in cells.items()}
    return Request(paths["case"], id=study_id) if "case" in paths else Request(files=paths, id=study_id)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuse before any work is done what writing would refuse after it.

    Raises:
        WrongUse: something lies in `target` and is not to be replaced.
    """
    if not overwrite and target.is_dir() and any(not path.name.startswith(".") for path in target.iterdir()):
        text = f"The output folder {target} is not empty."
        raise WrongUse("output-not-empty", text, "Give another folder, or --overwrite to replace earlier results.")


def print_findings(findings: Findings, target: Path) -> None:
    """What was found, where it lies, and that it is for research use only."""
    from MTMed3DCore.findings import RESEARCH_USE

    rows = [
        (
            str(lesion.id),
            f"{lesion.score:.2f}",
            " x ".join(f"{side:.0f}" for side in lesion.box.size),
            f"{lesion.longest_diameter_mm:.0f}",
            *(f"{lesion.volumes_ml.get(region, 0.0):.1f}" for region in ("whole_tumour", "tumour_core", "enhancing")),
        )
        for lesion in findings.lesions
    ]
    if rows:
        headings = ("lesion", "score", "box mm", "longest mm", "whole ml", "core ml", "enhancing ml")
        print_table(f"Study {findings.study_id}", headings, rows)
    else:
        print(f"Study {findings.study_id}: no tumour found.")
    if findings.grade is not None:
        print(f"Grade {findings.grade.label}, probability of high grade {findings.grade.probability_hgg:.2f}")
    for notice in findings.warnings:
        print(f"warning: {notice.text}")
    print(f"Results in {target}\n{RESEARCH_USE}")
