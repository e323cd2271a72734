"""The three commands of a training on synthetic studies in the folders of BraTS 2019: a rehearsal without data.

    python benchmarks/rehearsal.py OUT [--steps 300]

Makes 12 studies of each grade and runs ``mtmed3d datalist``, ``train`` with a small network on four of five folds, and
``evaluate`` on the fifth. What it shows is the way and the report (``OUT/report/report.html``), not what a network can
do: for that the steps are too few.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from overfit import SPACING_MM, make_studies, mtmed3d

OF_EACH_GRADE = 12
FIRST_SEED = 500
FOLD = "0"


def main() -> None:
    """Make, list, train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    out: Path = options.out
    studies = out / "MICCAI_BraTS_2019_Data_Training"
    make_studies(studies, OF_EACH_GRADE, FIRST_SEED)
    mtmed3d("datalist", studies, "-o", out / "list.json")
    start = time.monotonic()
    size = ["--feature-size", "12", "--spacing-mm", f"{SPACING_MM:g}", "--patch", "64", "--learning-rate", "1e-3"]
    length = ["--steps", str(options.steps), "--device", options.device, "--quiet"]
    mtmed3d("train", out / "list.json", "-o", out / "fold0", "--fold", FOLD, *size, *length)
    seconds = time.monotonic() - start
    bundle = out / "fold0" / "bundle"
    mtmed3d("evaluate", out / "list.json", "--model", bundle, "--fold", FOLD, "-o", out / "report", "--quiet")
    summary = json.loads((out / "report" / "evaluation.json").read_text())["summary"]
    for method, regions in summary["segmentation"]["methods"].items():
        print(method, {region: round(figures["dice"]["value"], 3) for region, figures in regions.items()})
    for task, figure in (("detection", "AP_IoU_0.10"), ("grading", "accuracy")):
        methods = summary[task]["methods"].items()
        print(figure, {method: round(each["figures"][figure]["value"], 3) for method, each in methods})
    print(f"after {seconds:.0f} s of training; the report is {out / 'report' / 'report.html'}")


if __name__ == "__main__":
    main()
