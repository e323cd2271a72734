"""``mtmed3d evaluate``: a model, or earlier results, against the truth of a data list."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.console import (
    Subparsers,
    add_compute_options,
    add_output_options,
    new_parser,
    print_table,
    progress_bar,
)
from MTMed3DCore.commands.images import evaluate_on_images
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.images2d.imagelist import is_image_list

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.datalist import DataList
    from MTMed3DCore.datalist.case import Case
    from MTMed3DCore.evaluation.bootstrap import Bootstrap
    from MTMed3DCore.evaluation.document import Evaluation
    from MTMed3DCore.evaluation.results import CaseResult
    from MTMed3DCore.evaluation.run import Source
    from MTMed3DCore.progress import Progress

TASKS = ("segmentation", "detection", "grading")
DESCRIPTION = """\
Measures a model on the labelled studies of a data list, whole volumes on the T1ce grid as it came in: Dice, HD95 and
their lesion-wise forms, average precision and FROC of the boxes, discrimination and calibration of the grade, each with
a confidence interval over patients and beside baselines. A command that was interrupted goes on where it stopped.
"""
EPILOG = """\
examples:
  mtmed3d evaluate brats19.json --model runs/fold0/bundle --fold 0 -o reports/fold0
  mtmed3d evaluate brats19.json --predictions results/ -o reports/stored
  mtmed3d evaluate test.json --model runs/fold0/bundle --temperature-from reports/fold0 -o reports/test
  mtmed3d evaluate --summarise reports/fold0 reports/fold1 reports/fold2 -o reports/all

written: report.html, evaluation.json, cases.csv, figures/*.png; rows/ keeps each finished case, cases/ each analysis.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    summary = "measure a model on labelled studies"
    parser = new_parser(subparsers, "evaluate", summary, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("list", type=Path, nargs="?", metavar="LIST", help="data list, made by `mtmed3d datalist`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the report")
    what = parser.add_argument_group("what to measure")
    what.add_argument("--fold", type=int, metavar="K", help="only the validation cases of this fold")
    what.add_argument("--cases", nargs="+", default=(), metavar="ID", help="only these cases of the list")
    what.add_argument("--predictions", type=Path, metavar="FOLDER", help="results of `mtmed3d analyze`, not a model")
    what.add_argument("--tasks", nargs="+", choices=TASKS, help="default: all that the model does")
    what.add_argument(
        "--summarise", type=Path, nargs="+", metavar="OUT", help="put finished evaluations of several folds together"
    )
    figures = parser.add_argument_group("figures")
    figures.add_argument(
        "--temperature-from", type=Path, metavar="OUT", help="scale the grades as fitted on that evaluation's patients"
    )
    figures.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    figures.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    figures.add_argument("--pictures", type=int, default=4, metavar="N", help="worst cases drawn (default: 4)")
    add_compute_options(parser)
    parser.set_defaults(model=None)
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Evaluate or summarise; returns 0, or 3 where a case could not be measured."""
    _check(options)
    if options.list is not None and is_image_list(options.list):
        return evaluate_on_images(options)
    from MTMed3DCore.evaluation.bootstrap import Bootstrap
    from MTMed3DCore.evaluation.publishing import publish

    bootstrap = Bootstrap(options.resamples, options.seed)
    with progress_bar(f"Evaluation in {options.output}", not (options.quiet or options.json)) as progress:
        cases: Sequence[Case] = ()
        if options.summarise:
            evaluation = _summarise(options, bootstrap)
        else:
            evaluation, cases = _evaluate(options, bootstrap, progress)
        publish(evaluation, options.output, cases, options.pictures, progress)
    if options.json:
        print(json.dumps(_answer(evaluation, options.output), indent=1))
    else:
        show(evaluation, options.output)
    return InputRefused.exit_code if evaluation.failures and not options.summarise else 0


def _check(options: argparse.Namespace) -> None:
    if options.summarise:
        alone = {"LIST": options.list, "--model": options.model, "--predictions": options.predictions}
        alone |= {"--temperature-from": options.temperature_from, "--cases": options.cases, "--tasks": options.tasks}
        given = [name for name, value in alone.items() if value]
        given += ["--fold"] if options.fold is not None else []
        if given:
            raise WrongUse("usage", f"--summarise reads finished evaluations; {given[0]} has no part in it.")
        if options.output.resolve() in {folder.resolve() for folder in options.summarise}:
            raise WrongUse("usage", f"{options.output} is one of the evaluations.", "Give another folder with -o.")
    elif options.list is None:
        raise WrongUse("usage", "No data list is given.", "Make one with `mtmed3d datalist`.")
    if options.model is not None and options.predictions is not None:
        raise WrongUse("usage", "Both --model and --predictions are given.", "Give one of them.")
    for name in ("resamples", "pictures"):
        if getattr(options, name) < 0:
            raise WrongUse("usage", f"--{name} is {getattr(options, name)}; it cannot be negative.")


def _evaluate(
    options: argparse.Namespace, bootstrap: Bootstrap, progress: Progress
) -> tuple[Evaluation, Sequence[Case]]:
    from MTMed3DCore.datalist import DataList
    from MTMed3DCore.evaluation.document import Evaluation
    from MTMed3DCore.evaluation.run import choose_cases, claim_folder, evaluate_cases
    from MTMed3DCore.evaluation.summary import summarise
    from MTMed3DCore.evaluation.temperature import temperature_from, with_temperature

    listed = DataList.read(options.list)
    cases = choose_cases(listed, options.fold, options.cases)
    source, bundle = _source(options)
    tasks = _tasks(options, source.tasks(cases), bundle)
    wanted = sorted(options.tasks or (TASKS if bundle is None else tasks))  # a further result may show a further task
    trained_on = None if bundle is None else sum(bundle.has_seen(case.patient) for case in cases)
    data = {"list": str(options.list), "sha256": listed.sha256, "fold": options.fold, "cases": len(cases)}
    data["trained_on"] = trained_on
    claim_folder(
        options.output,
        {**source.identity, "data_list": listed.sha256, "cases": [case.id for case in cases], "tasks": wanted},
        options.overwrite,
    )
    results, failures = evaluate_cases(
        cases,
        source,
        options.output,
        tasks,
        progress,
        lambda each: print(f"error: {each.id}: {each.text}", file=sys.stderr),
    )
    if not results:
        text = f"None of the {len(cases)} cases could be measured; the first: {failures[0].text}"
        raise InputRefused("no-results", text, failures[0].remedy)
    models = {json.dumps(result.model) for result in results}
    identity = source.identity | ({"model": results[0].model} if len(models) == 1 else {})
    notes = [*_notes(listed, cases, trained_on, options), *_not_measured(tasks, wanted), *_of_results(results)]
    temperature = None
    if options.temperature_from is not None:
        seen = None if bundle is None else bundle.has_seen
        temperature, doubts = temperature_from(options.temperature_from, results, seen)
        results = with_temperature(results, temperature["value"])
        notes += doubts
    evaluation = Evaluation(
        source=identity,
        data=data,
        results=results,
        failures=failures,
        summary=summarise(results, bootstrap),
        bootstrap=bootstrap,
        temperature=temperature,
        notes=notes,
        created=_now(),
    )
    return evaluation, cases


def _source(options: argparse.Namespace) -> tuple[Source, Bundle | None]:
    """Where the findings come from, and the bundle where it is a model."""
    from MTMed3DCore.evaluation.run import ModelSource, StoredSource

    if options.predictions is not None:
        if not options.predictions.is_dir():
            text = f"There is no folder {options.predictions}."
            raise InputRefused(
                "folder-missing", text, "Give the output folder of `mtmed3d analyze` on several studies."
            )
        return StoredSource(options.predictions), None
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.inference import choose_device

    bundle = find_bundle(options.model or "starter")
    network = bundle.load(choose_device(options.device))
    return ModelSource(bundle, network, options.output, options.device, options.precision), bundle


def _tasks(options: argparse.Namespace, offered: Sequence[str], bundle: Bundle | None) -> Sequence[str]:
    """The tasks to measure: all that are offered, or those asked for, which must be among them."""
    lacking = [task for task in options.tasks or () if task not in offered]
    if lacking:
        who = f"the results in {options.predictions}" if bundle is None else f"the model {bundle.name}"
        text = f"--tasks names {lacking[0]}; the tasks of {who} are: {', '.join(offered)}."
        raise WrongUse("task-lacking", text, "Name some of these, or leave out --tasks.")
    return options.tasks or offered


def _notes(
    listed: DataList, cases: Sequence[Case], trained_on: int | None, options: argparse.Namespace
) -> tuple[str, ...]:
    """What a reader of the report must know before its figures."""
    notes = []
    if trained_on:
        notes.append(f"The model was trained on {trained_on} of these {len(cases)} cases; on them its figures flatter.")
    asked = listed.cases if options.fold is None else listed.fold(options.fold)[1]
    unknown = 0 if options.cases else len(asked) - len(cases)
    if unknown:
        notes.append(f"Left out, having no label map, boxes or grade: {unknown} of {len(asked)} cases.")
    ungraded = sum(case.grade is None for case in cases)
    if ungraded:
        notes.append(
            f"{ungraded} of {len(cases)} cases have no known grade and take no part in the figures of grading."
        )
    return tuple(notes)


def _not_measured(tasks: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """A note of the tasks that stored results do not show their model to do; without a detector boxes are drawn."""
    left = ", ".join(task for task in TASKS if task in wanted and task not in {*tasks, "detection"})
    return [f"Not measured, since the results do not show that their model does it: {left}."] if left else []


def _of_results(results: Sequence[CaseResult]) -> list[str]:
    """Notes that only the results tell."""
    from MTMed3DCore.evaluation.bootstrap import notes_on
    from MTMed3DCore.evaluation.results import MODEL, THRESHOLDS, UNDETECTED

    notes = notes_on([each.patient for each in results])
    models = len({json.dumps(each.model) for each in results})
    notes += [f"The results were made by {models} different models."] if models > 1 else []
    if any(UNDETECTED in each.warnings for each in results):
        notes.append("The model has no box detector: the figures of detection are of boxes drawn round its regions.")
    bare = sum(MODEL in each.methods and THRESHOLDS not in each.methods for each in results)
    if bare:
        text = f"Not skull-stripped, and so without the threshold baseline: {bare} of {len(results)} cases."
        notes.append(f"{text} The report's rows 'model minus' compare on the others.")
    return notes


def _summarise(options: argparse.Namespace, bootstrap: Bootstrap) -> Evaluation:
    from dataclasses import replace

    from MTMed3DCore.evaluation.crossvalidation import cross_validation
    from MTMed3DCore.evaluation.run import claim_folder

    evaluation = replace(cross_validation(options.summarise, bootstrap), created=_now())
    claim_folder(options.output, {"summary_of": [str(path.resolve()) for path in options.summarise]}, options.overwrite)
    return evaluation


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds")


def _answer(evaluation: Evaluation, output: Path) -> dict[str, Any]:
    document = evaluation.to_dict()
    return {
        "report": str(output / "report.html"),
        **{name: document[name] for name in ("summary", "failures", "notes")},
    }


def show(evaluation: Evaluation, output: Path) -> None:
    """Print the main figures, what failed, and where the report lies."""
    from MTMed3DCore.evaluation import detection, grading
    from MTMed3DCore.evaluation.figures import REGION_NAMES
    from MTMed3DCore.evaluation.report import SHORT, with_interval
    from MTMed3DCore.evaluation.results import METHOD_NAMES, REGION_FIGURES
    from MTMed3DCore.evaluation.summary import row_name

    summary = evaluation.summary
    if summary["segmentation"]:
        rows = [
            (f"{REGION_NAMES[region]}, {row_name(evaluation.results, 'segmentation', method)}",
             *(with_interval(entry[name], 1 if name.endswith("mm") else 3) for name in REGION_FIGURES))
            for method, regions in summary["segmentation"]["methods"].items()
            for region, entry in regions.items()
        ]  # fmt: skip
        print_table("Segmentation", ("", *(SHORT[name] for name in REGION_FIGURES)), rows)
    for task, names in (("detection", detection.FIGURES[:5]), ("grading", grading.FIGURES[:6])):
        if summary[task]:
            rows = [
                (
                    METHOD_NAMES[method] if task == "grading" else row_name(evaluation.results, task, method),
                    *(with_interval(entry["figures"][name]) for name in names),
                )
                for method, entry in summary[task]["methods"].items()
            ]
            print_table(task.capitalize(), ("", *names), rows)
    for note in evaluation.notes:
        print(f"note: {note}")
    if evaluation.failures:
        print(f"Could not be measured: {len(evaluation.failures)} cases; the report names them.")
    print(f"{len(evaluation.results)} cases measured. Report: {output / 'report.html'}")
