"""Analyse whole studies as a user would, each in a process of its own, and set the results beside the truth.

    python benchmarks/cases.py FOLDER [FOLDER ...] -o OUT [--model starter] [--known NAME=LGG ...] [--card] [--quick]

A FOLDER holds the four sequences and, where the truth is known, ``seg.nii.gz`` or ``seg.mha``; ``--known`` tells the
grades that are known, by the folders' names. Writes ``cases.json``
and ``cases.md`` with Dice, box IoU, grade, time and peak memory, beside a baseline without learning; with ``--card``
the table also goes into the model card of a bundle that is given as a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from MTMed3DCore.bundles import rewrite_section
from MTMed3DCore.evaluation.baseline import threshold_labels
from MTMed3DCore.evaluation.labels import unify_labels
from MTMed3DCore.evaluation.overlap import EVALUATED, main_box, region_dice
from MTMed3DCore.evaluation.scoring import component_boxes
from MTMed3DCore.exports import read_findings
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.study import Study
from MTMed3DCore.training.calibration import HIT_IOU
from MTMed3DCore.volume import Volume, read_volume

CARD_SECTION = """Each with `mtmed3d analyze` as a user calls it; Dice, and IoU of the boxes round the largest tumour;
in brackets those of thresholds on FLAIR and T1ce. `labels` are the values of the truth: 1 necrosis or non-enhancing
core, 2 oedema, 4 (or 3 where there is no 4) enhancing; where there are 3 and 4, 3 is non-enhancing core, 1 necrosis.
`boxed`: true lesions above 1 ml that a box meets at IoU 0.5; `false`: reported ones above 1 ml that meet none at 0.1.

{table}"""
SMALLEST_ML, BOXED_IOU = 1.0, 0.5
TRUTH_NAMES = ("seg.nii.gz", "seg.mha", "machine_fusion.nii.gz")


def analyse_in_child(case: Path, output: Path, options: list[str]) -> tuple[float, float]:
    """Run ``mtmed3d analyze`` on one study; seconds of wall clock and peak resident MiB."""
    start = time.monotonic()
    command = [sys.executable, "-m", "MTMed3DCore", "analyze", str(case), "-o", str(output), *options]
    child = os.posix_spawn(sys.executable, [*command, "--overwrite", "--quiet"], os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"analyze ended with {os.waitstatus_to_exitcode(status)} on {case}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def compare(found: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Dice of the three regions and IoU of the boxes round the largest tumours."""
    row = dict(region_dice(found, truth))
    boxes = main_box(found), main_box(truth)
    row["box_iou"] = boxes[0].iou(boxes[1]) if boxes[0] and boxes[1] else 0.0
    return row


def measure(case: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """Everything about one study, analysed with some of the command's options."""
    seconds, memory = analyse_in_child(case, output, options)
    findings = json.loads((output / "findings.json").read_text())
    found = np.asarray(nibabel.load(output / "segmentation.nii.gz").dataobj).astype(np.uint8)
    row: dict[str, Any] = {
        "case": case.name,
        "seconds": seconds,
        "peak_mib": memory,
        "grade": findings["grade"],
        "lesions": len(findings["lesions"]),
        "volumes_ml": findings["volumes_ml"],
    }
    name = next((n for n in TRUTH_NAMES if (case / n).exists()), None)
    if name:
        row["truth"] = name
        volume = read_volume(case / name)
        labels = volume.array
        row["label_values"] = sorted({int(value) for value in np.unique(labels)} - {0})
        truth = unify_labels(labels, case / name)
        row["found"] = compare(found, truth)
        row["lesions_over_1_ml"] = count_lesions(output, Volume(truth, volume.grid))
        row["baseline"] = compare(threshold_labels(Study.read(case).array()), truth)
    return row


def count_lesions(output: Path, truth: Volume) -> dict[str, int]:
    """True lesions above 1 ml, those of them that some box meets at IoU 0.5, and found ones above 1 ml that meet none.

    Lesions as a data list has them; a found one is false where its box meets no true one's at IoU 0.1.
    """
    found = read_findings(output).lesions
    boxes = [lesion.box.to_voxel(truth.grid) for lesion in found]
    rows, sizes = component_boxes(truth.array, truth.grid)
    every = [VoxelBox.from_list(row) for row in rows]
    large = [box for box, ml in zip(every, sizes, strict=True) if ml > SMALLEST_ML]
    boxed = sum(any(true.iou(box) >= BOXED_IOU for box in boxes) for true in large)
    false = sum(
        lesion.volumes_ml["whole_tumour"] > SMALLEST_ML and all(box.iou(true) < HIT_IOU for true in every)
        for lesion, box in zip(found, boxes, strict=True)
    )
    return {"true": len(large), "boxed": boxed, "false": false}


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the rows and their means over the expert-labelled studies."""
    keys = (*EVALUATED, "box_iou")
    lines = [
        "| case | labels | " + " | ".join(f"{k} (baseline)" for k in keys) + " | grade | boxed | false | s | MiB |",
        "|" + "---|" * (len(keys) + 7),
    ]
    for row in rows:
        cells = [f"{row['found'][k]:.3f} ({row['baseline'][k]:.3f})" if "found" in row else "-" for k in keys]
        grade = f"{row['grade']['label']} {row['grade']['probability_hgg']:.2f}" if row["grade"] else "-"
        grade += f" (known: {row['known_grade']})" if row.get("known_grade") else ""
        name = row["case"] + (" (machine label)" if str(row.get("truth", "")).startswith("machine") else "")
        counts = row.get("lesions_over_1_ml")
        lesions = f"{counts['boxed']} of {counts['true']} | {counts['false']}" if counts else "- | -"
        end = f"{grade} | {lesions} | {row['seconds']:.1f} | {row['peak_mib']:.0f} |"
        labels = " ".join(map(str, row.get("label_values", ()))) or "-"
        lines.append(f"| {name} | {labels} | " + " | ".join(cells) + f" | {end}")
    expert = [row for row in rows if str(row.get("truth", "")).startswith("seg")]
    if expert:
        means = [[float(np.mean([row[who][k] for row in expert])) for who in ("found", "baseline")] for k in keys]
        cells = [f"**{found:.3f}** ({baseline:.3f})" for found, baseline in means]
        lines.append(f"| mean of {len(expert)} expert-labelled | | " + " | ".join(cells) + " | | | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every study and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--known", nargs="+", default=[], type=lambda said: said.split("="), metavar="NAME=GRADE")
    parser.add_argument("--quick", action="store_true", help="analyse in the quick mode")
    parser.add_argument("--card", action="store_true", help="put the table into the model card of the bundle --model")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    how = ["--model", options.model, *(["--quick"] if options.quick else [])]
    known = dict(options.known)
    rows = [
        measure(case, options.output / case.name, how) | {"known_grade": known.get(case.name)} for case in options.cases
    ]
    (options.output / "cases.json").write_text(json.dumps(rows, indent=1))
    (options.output / "cases.md").write_text(table(rows))
    print(table(rows))
    if options.card:
        rewrite_section(Path(options.model), "Measured on real studies", CARD_SECTION.format(table=table(rows)))


if __name__ == "__main__":
    main()
