"""What in the synthetic studies matters: one part of their variety taken away, or widened, beside control arms.

    python benchmarks/ablation.py OUT [--steps 200] [--only ARM ...] [--cases FOLDER ...]

Trains the starter's segmentation from nothing for the same number of steps on each family of studies, and measures
every arm alike on studies of the family ``held_out`` (threshold chosen on other studies of it). Two control arms with
other seeds show how much an arm differs by chance. Labelled real studies, where given, are reported and choose nothing.
An arm that is finished in OUT is not trained again. Writes ``ablation.json`` and ``ablation.md``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from cases import measure

from MTMed3DCore.bundles import save_bundle
from MTMed3DCore.evaluation.overlap import EVALUATED
from MTMed3DCore.synthetic.family import FAMILIES, Family
from MTMed3DCore.training.calibration import FIRST_SEED, calibrated, region_dice, run_over
from MTMed3DCore.training.loop import StarterRun, train_starter
from MTMed3DCore.training.settings import StarterSettings
from MTMed3DCore.training.starter import FIRST_HELD_OUT_SEED, TRAINED_ON, trained_network

CHOSEN_ON, MEASURED_ON = 12, 24
"""Studies of the held-out family: for the threshold, and for the figures."""
CONTRASTS = tuple(f.name for f in fields(Family) if f.name.split("_")[-1] in ("t1", "t2", "flair"))


@dataclass(frozen=True)
class Arm:
    """One training: on what, and from which seed."""

    family: Family
    seed: int
    change: str


def fixed(*names: str) -> Family:
    """The default family with the middle of these ranges for every study."""
    whole = Family()
    middles = {name: sum(getattr(whole, name)) / 2 for name in names}
    return replace(whole, **{name: (middle, middle) for name, middle in middles.items()})


def widened(factor: float, *names: str) -> Family:
    """The default family with these ranges wider about their middle; no intensity falls below .02."""
    wider = {}
    for name in names:
        low, high = getattr(Family(), name)
        middle, half = (low + high) / 2, factor * (high - low) / 2
        wider[name] = (max(0.02, middle - half), middle + half)
    return replace(Family(), **wider)


CONTROL_SEED = 6_000_000
ARMS = {
    "control": Arm(Family(), CONTROL_SEED, "none"),
    "control-again": Arm(Family(), CONTROL_SEED + 500_000, "none; other studies and first weights"),
    "wider": Arm(
        replace(widened(2.0, *CONTRASTS), bias=(0.0, 0.35), noise=(0.002, 0.05)),
        CONTROL_SEED,
        "the healthy tissues' intensities twice as varied, more shading and noise",
    ),
    "wider-still": Arm(
        replace(
            Family(),
            white_t1=(0.70, 1.03),
            grey_t1=(0.46, 0.78),
            fluid_t1=(0.02, 0.46),
            white_t2=(0.22, 0.46),
            grey_t2=(0.37, 0.62),
            fluid_t2=(0.70, 1.50),
            white_flair=(0.36, 0.68),
            grey_over_white_flair=(-0.06, 0.27),
            bright_cortex=0.7,
            bright_cortex_flair=(0.05, 0.32),
            fluid_flair=(0.02, 0.44),
            curve=0.22,
            bias=(0.0, 0.35),
            noise=(0.002, 0.05),
        ),
        CONTROL_SEED,
        "about as wider, and cortex brighter on FLAIR more often, curve more varied",
    ),
    "strong-coils": Arm(
        replace(Family(), coil=(0.0, 0.8), wide_sinuses=0.5),
        CONTROL_SEED,
        "coils that leave the surface much brighter than the depth, wide venous sinuses",
    ),
    "one-contrast": Arm(fixed(*CONTRASTS), CONTROL_SEED, "the healthy tissues' intensities fixed"),
    "clean-scanner": Arm(
        replace(Family(), bias=(0.0, 0.0), noise=(0.002, 0.002), thick_slices=0.0),
        CONTROL_SEED,
        "no shading, little noise, no thick slices",
    ),
    "one-tumour": Arm(
        fixed("rim", "enhancement", "oedema_reach", "oedema_strength"),
        CONTROL_SEED,
        "rim, enhancement and oedema fixed",
    ),
}


def train(name: str, steps: int, folder: Path) -> StarterRun:
    """Train an arm, unless its folder holds it."""
    arm = ARMS[name]
    FAMILIES[name] = arm.family
    settings = StarterSettings(tasks=("segmentation",), steps=steps, seed=arm.seed, family=name, precision="bf16")
    if not (folder / "done").exists():
        train_starter(settings, folder)
        (folder / "done").touch()
    return StarterRun.read(folder)


def score(name: str, run: StarterRun, out: Path, cases: Sequence[Path]) -> dict[str, Any]:
    """Mean Dice of an arm on held-out studies, and that on each real one."""
    network, settings = trained_network(run)
    choosing = [found for _, found in run_over(network, settings, range(FIRST_SEED, FIRST_SEED + CHOSEN_ON))]
    settings = calibrated(settings, choosing)
    rows = []
    for study, found in run_over(network, settings, range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + MEASURED_ON)):
        if study.grade is not None:
            rows.append(found)
    core, whole, enhancing = region_dice(settings, rows).tolist()
    result: dict[str, Any] = {"steps": run.steps, "studies_with_tumour": len(rows)}
    result["region_thresholds"] = settings.region_thresholds
    result["held_out"] = dict(zip(EVALUATED, (whole, core, enhancing), strict=True))
    if cases:
        card = f"# {name}\n\nFor research use only. An arm of an ablation.\n"
        bundle, trained_on = out / "bundle", TRAINED_ON.format(family=name)
        save_bundle(bundle, network, settings, name=name, version="0", trained_on=trained_on, card=card, overwrite=True)
        scored = {case.name: measure(case, out / case.name, ["--model", str(bundle)]) for case in cases}
        result["real"] = {case: {region: row["found"][region] for region in EVALUATED} for case, row in scored.items()}
    return result


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, one arm a line."""
    columns = [*(f"held out {r}" for r in EVALUATED), *(f"real {r}" for r in EVALUATED)]
    lines = ["| arm | change | " + " | ".join(columns) + " |", "|" + "---|" * (2 + len(columns))]
    for name, result in results.items():
        cells = [f"{result['held_out'][region]:.3f}" for region in EVALUATED]
        real = list(result.get("real", {}).values())
        cells += [f"{np.mean([row[region] for row in real]):.3f}" if real else "-" for region in EVALUATED]
        lines.append(f"| {name} | {ARMS[name].change} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and measure every arm; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--cases", nargs="+", type=Path, default=[])
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = {}
    for name in options.only:
        folder = options.out / name
        results[name] = score(name, train(name, options.steps, folder / "run"), folder, options.cases)
        print(table(results), flush=True)
    (options.out / "ablation.json").write_text(json.dumps(results, indent=1))
    (options.out / "ablation.md").write_text(table(results))


if __name__ == "__main__":
    main()
