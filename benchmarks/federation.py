"""A federation of three unlike sites with the project's own network and trainer, beside what it is compared with.

    python benchmarks/federation.py OUT [--seeds 3] [--rounds 6] [--local-steps 10] [--device cuda]

All studies are synthetic. *north* has twelve of the common family with label maps and grades; *south* eight of a family
with other tissue contrast and larger tumours, with label maps alone; *west* six whose contrast curve is bent, with
grades alone. Every method is measured on twelve studies of no site, four of each contrast, with all labels. The network
is the smallest ResFormer at 5 mm, in patches of 32 voxels.

Calls ``mtmed3d federate simulate`` once for every method and seed, and writes ``table.md``, ``course.png`` and
``results.json``. An interrupted benchmark goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore import cli
from MTMed3DCore.datalist import Case, DataList, build_datalist
from MTMed3DCore.federation.measuring import FIGURES
from MTMed3DCore.federation.simulation import GLOBAL
from MTMed3DCore.synthetic import make_study, write_study

SPACING_MM, SHAPE = 4.0, (44, 50, 44)
METHODS = ("centralised", "local", "fedavg", "bayes", "bayes+matching")
SITES = {"north": (12, "default", 1.0), "south": (8, "held_out", 1.0), "west": (6, "default", 0.5)}
TEST_OF_EACH = 4
SMALLEST = {"blocks": [1, 1, 1, 1], "rates": [2], "drop_path": 0.0}
TRAINING = {
    "network_family": "resformer",
    "network_options": SMALLEST,
    "feature_size": 8,
    "tasks": ["segmentation", "grading"],
    "spacing_mm": 5.0,
    "patch": 32,
    "wide_patch": 64,
    "fold": None,
    "learning_rate": 6e-3,
    "warm_up": 2,
    "weight_decay": 0.0,
    "workers": 0,
}
"""A high rate, because the optimiser starts anew in every round and has few steps."""


def make_sites(folder: Path) -> None:
    """``sites.json`` with ``sites.csv``, and ``test.json``."""
    cases: list[Case] = []
    test: list[Case] = []
    table = ["id,site"]
    seed = 0
    for name, (number, family, bend) in SITES.items():
        made = 0
        while made < number + TEST_OF_EACH:
            study = make_study(seed, SHAPE, SPACING_MM, family=family)
            seed += 1
            if study.grade is None or not study.boxes or study.grade != made % 2:
                continue
            bent = replace(study, image=study.image.clamp(min=0) ** bend)
            write_study(bent, folder / name / ("HGG" if study.grade else "LGG") / f"BraTS19_{name}{made}_1")
            made += 1
        found = build_datalist([folder / name]).cases
        test += found[:TEST_OF_EACH]
        for case in found[TEST_OF_EACH:]:
            table.append(f"{case.id},{name}")
            if name == "south":
                case = replace(case, grade=None, boxes=None)
            elif name == "west":
                case = replace(case, label=None, boxes=None)
            cases.append(case)
    DataList(tuple(cases)).write(folder / "sites.json")
    DataList(tuple(test)).write(folder / "test.json")
    (folder / "sites.csv").write_text("\n".join(table) + "\n")


def run_arm(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """One method with one seed; read from its folder where it is there already."""
    out: Path = options.out / f"{method}-{seed}"
    if not (out / "simulation.json").is_file():
        shutil.rmtree(out, ignore_errors=True)  # what an interrupted benchmark left
        settings = options.out / "settings.json"
        settings.write_text(json.dumps(TRAINING))
        command = ["federate", "simulate", options.out / "sites.json", "-o", out, "--methods", method]
        command += ["--by", "site", "--table", options.out / "sites.csv", "--test", options.out / "test.json"]
        command += ["--settings", settings, "--cache", options.out / "cache", "--seed", seed, "--quiet"]
        command += ["--rounds", options.rounds, "--local-steps", options.local_steps, "--device", options.device]
        command += ["--measure-every", options.measure_every, "--fisher-patches", 4]
        if code := cli.main([str(part) for part in command]):
            raise SystemExit(code)
    document: dict[str, Any] = json.loads((out / "simulation.json").read_text())
    course: dict[str, Any] = document["methods"][method]
    return course


def measured_in(results: list[dict[str, Any]]) -> list[str]:
    """Those of `FIGURES` that were measured at all."""
    rounds = [row for run in results for course in run.values() for row in course["rounds"]]
    return [name for name in FIGURES if any(name in row.get("measured", {}).get(GLOBAL, {}) for row in rounds)]


def table_of(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of the last global figures."""
    names = measured_in(results)
    lines = [f"| method ({len(results)} seeds) | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for method in results[0]:
        cells = []
        for name in names:
            values = [run[method]["rounds"][-1]["measured"][GLOBAL].get(name, np.nan) for run in results]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(results: list[dict[str, Any]], picture: Path) -> None:
    """Every global figure over the rounds, mean of the seeds and its range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    names = measured_in(results)
    for panel, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for method in results[0]:
            rows = [
                [r for r in run[method]["rounds"] if name in r.get("measured", {}).get(GLOBAL, {})] for run in results
            ]
            if not rows[0]:
                continue
            rounds = [row["round"] for row in rows[0]]
            values = np.array([[row["measured"][GLOBAL][name] for row in each] for each in rows])
            (line,) = panel.plot(rounds, values.mean(0), marker="o", markersize=3, label=method)
            panel.fill_between(rounds, values.min(0), values.max(0), alpha=0.15, color=line.get_color())
        panel.set_title(name.replace("_", " "))
        panel.set_xlabel("round")
        panel.set_ylim(0, 1)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main() -> int:
    """Make the sites, run every seed, write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--measure-every", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if not (options.out / "test.json").is_file():
        make_sites(options.out)
    seeds = range(1, options.seeds + 1)
    courses = {method: [run_arm(options, method, seed) for seed in seeds] for method in options.methods}
    results = [{method: courses[method][seed - 1] for method in courses} for seed in seeds]
    (options.out / "results.json").write_text(json.dumps(results))
    table = table_of(results)
    (options.out / "table.md").write_text(table)
    draw(results, options.out / "course.png")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
