"""A federation of three unlike sites with the project's own network and trainer, beside what it is compared with.

    python benchmarks/federation.py OUT [--seeds 3] [--rounds 20] [--local-steps 50] [--device cuda]

All studies are synthetic. *north* has ten of the common family with label maps, boxes and grades; *south* six of a
family with other tissue contrast and larger tumours, with label maps alone; *west* four whose contrast curve is bent,
with grades alone. Every method is measured after every round on six studies of no site, two of each contrast, with all
labels. Calls ``mtmed3d federate simulate`` once a seed, and writes ``table.md``, ``course.png`` and ``results.json``.
An interrupted benchmark goes on with the seeds that are missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MTMed3DCore.datalist import Case, DataList, build_datalist
from MTMed3DCore.federation.measuring import FIGURES
from MTMed3DCore.federation.simulation import GLOBAL
from MTMed3DCore.synthetic import make_study, write_study

SPACING_MM, SHAPE = 4.0, (44, 50, 44)
METHODS = ("fedavg", "bayes", "bayes+matching", "local", "centralised")
SITES = {"north": (10, "default", 1.0), "south": (6, "held_out", 1.0), "west": (4, "default", 0.5)}
TEST_OF_EACH = 2


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


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All methods with one seed; read from their folder where they are there already."""
    out: Path = options.out / f"seed{seed}"
    if not (out / "simulation.json").is_file():
        plain = {"feature_size": 12, "spacing_mm": SPACING_MM, "patch": 64, "wide_patch": 64, "fold": None}
        plain |= {"tasks": options.tasks, "learning_rate": 1.5e-3, "warm_up": 5, "workers": 0}
        settings = options.out / "settings.json"
        settings.write_text(json.dumps(plain))
        command = [sys.executable, "-m", "MTMed3DCore", "federate", "simulate", options.out / "sites.json", "-o", out]
        command += ["--by", "site", "--table", options.out / "sites.csv", "--test", options.out / "test.json"]
        command += ["--settings", settings, "--cache", options.out / "cache", "--seed", seed, "--quiet"]
        command += ["--rounds", options.rounds, "--local-steps", options.local_steps, "--device", options.device]
        command += ["--measure-every", options.measure_every, "--methods", *options.methods]
        subprocess.run([str(part) for part in command], check=True)
    document: dict[str, Any] = json.loads((out / "simulation.json").read_text())
    return document["methods"]


def table_of(results: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds of the last global figures."""
    lines = [f"| method ({len(results)} seeds) | " + " | ".join(n.replace("_", " ") for n in FIGURES) + " |"]
    lines.append("|---" * (len(FIGURES) + 1) + "|")
    for method in results[0]:
        cells = []
        for name in FIGURES:
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
    for panel, name in zip(figure.subplots(1, len(FIGURES)), FIGURES, strict=True):
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
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--local-steps", type=int, default=50)
    parser.add_argument("--measure-every", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--tasks", nargs="+", default=["segmentation", "grading"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if not (options.out / "test.json").is_file():
        make_sites(options.out)
    results = [run_seed(options, seed) for seed in range(1, options.seeds + 1)]
    (options.out / "results.json").write_text(json.dumps(results))
    table = table_of(results)
    (options.out / "table.md").write_text(table)
    draw(results, options.out / "course.png")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
