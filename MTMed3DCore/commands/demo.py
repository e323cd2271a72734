"""``mtmed3d demo``: make a synthetic study, analyse it, and compare what was found with what was put in."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.analyze import Request, load_model, read_analyze_write
from MTMed3DCore.commands.console import (
    Subparsers,
    add_compute_options,
    add_output_options,
    new_parser,
    print_table,
    progress_bar,
)
from MTMed3DCore.errors import WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.synthetic import SyntheticStudy

DESCRIPTION = """\
Makes a synthetic study of four MR sequences with known tumours, analyses it as `mtmed3d analyze` does, and prints what
was found beside what is true. Needs no data and no network connection.
"""
EPILOG = """\
examples:
  mtmed3d demo
  mtmed3d demo -o somewhere/ --seed 7

How well a model does on a synthetic study says nothing about how well it does on patients.
"""
GRADES = ("LGG", "HGG")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_parser(
        subparsers, "demo", "the same on a synthetic study; nothing to download", description=DESCRIPTION, epilog=EPILOG
    )
    default = Path("mtmed3d-demo")
    parser.add_argument("-o", "--output", type=Path, default=default, metavar="OUT", help="default: ./mtmed3d-demo")
    parser.add_argument("--seed", type=int, default=14, help="another number makes another study (default: 14)")
    add_compute_options(parser)
    add_output_options(parser)
    parser.set_defaults(run=run, check_uncertainty=False, compiled=False, mode="exact")


def run(options: argparse.Namespace) -> int:
    """Make, analyse, compare, and say where everything lies."""
    output = options.output
    case, results = output / "study", output / "results"
    # A folder that an earlier demo made may be filled again; anything else is somebody's work.
    if output.exists() and not (case / "truth.json").is_file() and not options.overwrite:
        if not output.is_dir():
            raise WrongUse("output-not-folder", f"{output} is a file.", "Give a folder with -o.")
        if any(output.iterdir()):
            raise WrongUse("output-exists", f"{output} holds other files.", "Give another folder with -o.")
    options.overwrite = True
    from MTMed3DCore.findings import RESEARCH_USE
    from MTMed3DCore.synthetic import make_study, write_study

    model = load_model(options)
    with progress_bar(f"Synthetic study, seed {options.seed}", not (options.json or options.quiet)) as progress:
        progress("read", 0.0, "Making a synthetic study")
        truth = make_study(options.seed)
        case.mkdir(parents=True, exist_ok=True)
        write_study(truth, case)
        request = Request(case, id=f"synthetic-{options.seed}")
        findings, path = read_analyze_write(request, results, model, options, progress)
    comparison = compare(findings, truth)
    if options.json:
        answer = {"comparison": comparison, "findings": json.loads(path.read_text(encoding="utf-8"))}
        print(json.dumps({**answer, "output": str(output)}, indent=2))
        return 0
    print_comparison(findings, comparison)
    for text in (notice.text for notice in findings.warnings):
        print(f"warning: {text}")
    print(f"Picture    {results / 'preview.png'}\nReport     {results / 'report.html'}\nResults    {results}")
    print(f"Study      {case}\n{RESEARCH_USE}")
    return 0


def compare(findings: Findings, truth: SyntheticStudy) -> dict[str, Any]:
    """What was found beside what is true, on the study's own grid.

    Returns:
        `regions`: for each region millilitres true and found, and Dice (None where both are empty);
        `lesions`: for each true box the greatest intersection over union with a found one;
        `grade`: true and found, None where there is none.
    """
    import numpy as np

    from MTMed3DCore.findings import REGION_LABELS, volumes_ml

    labels = np.asarray(truth.labels.cpu(), dtype=np.uint8)
    true_ml, found_ml = volumes_ml(labels, findings.grid), findings.volumes_ml
    regions = {}
    for name in ("whole_tumour", "tumour_core", "enhancing"):
        a, b = (np.isin(values, REGION_LABELS[name]) for values in (labels, findings.labels))
        total = int(a.sum() + b.sum())
        dice = 2.0 * int((a & b).sum()) / total if total else None
        regions[name] = {"true_ml": true_ml[name], "found_ml": found_ml[name], "dice": dice}
    found = [lesion.box.to_voxel(findings.grid) for lesion in findings.lesions]
    best = [max((box.iou(other) for other in found), default=0.0) for box in truth.boxes]
    grade = {
        "true": None if truth.grade is None else GRADES[truth.grade],
        "found": None if findings.grade is None else findings.grade.label,
    }
    return {"regions": regions, "lesions": {"found": len(found), "best_iou": best}, "grade": grade}


def print_comparison(findings: Findings, comparison: dict[str, Any]) -> None:
    """The comparison as a table."""
    rows = [
        (
            name.replace("_", " "),
            f"{region['true_ml']:.1f} ml",
            f"{region['found_ml']:.1f} ml",
            "-" if region["dice"] is None else f"Dice {region['dice']:.2f}",
        )
        for name, region in comparison["regions"].items()
    ]
    lesions, grade = comparison["lesions"], comparison["grade"]
    overlap = ", ".join(f"{value:.2f}" for value in lesions["best_iou"]) or "-"
    rows.append(("tumour boxes", str(len(lesions["best_iou"])), str(lesions["found"]), f"overlap (IoU) {overlap}"))
    right = "-" if None in grade.values() else "right" if grade["true"] == grade["found"] else "wrong"
    rows.append(("grade", grade["true"] or "none", grade["found"] or "none", right))
    print_table(f"Study {findings.study_id}, model {findings.model.name}", ("", "true", "found", "agreement"), rows)
