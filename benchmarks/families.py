"""Every family of networks learns a tiny set by heart: the proof that networks, losses and commands fit together.

    python benchmarks/families.py OUT [--only resformer-2d ...] [--steps 200]

In two dimensions a folder of drawn discs and squares goes through ``mtmed3d datalist --images``, ``train`` and
``evaluate``; in three, studies of a head with a ball go through ``datalist``, ``train``, ``evaluate`` and ``analyze``
(``-studies``), and a network and its loss are stepped on a few small volumes of balls (``-3d``), which takes less time.
Writes ``families.json`` into OUT, and ends with 1 where a figure is not reached: Dice 0.95 in every region, every label
right, and, with boxes, average precision 1.0 at IoU 0.1.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from MTMed3DCore import cli
from MTMed3DCore.evaluation.detection import detection_figures, match_boxes
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.networks import TaskNetwork, find_family
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.synthetic import SyntheticStudy, write_study
from MTMed3DCore.training.hybrid import BatchTarget

SIDE = 64
RATES = {"resformer": 1e-2, "mtmedformer": 2.5e-3, "mtmedformer-studies": 8e-4}
"""By run or family. High, because a few steps of AdamW move no weight further than their number times the rate; on
studies 2.5e-3 kills MTMedFormer's classifier, whose loss then stays at ln 2."""
ANCHOR_SHAPES = [[10.0, 10.0, 10.0], [12.0, 12.0, 12.0]]
SMALL = {"resformer": {"blocks": [1, 1, 1, 1], "drop_path": 0.0}, "mtmedformer": {}}
SIZES = {"resformer": 8, "mtmedformer": 12}
SPACING_MM, HEAD = 4.0, (40, 40, 40)
KINDS = ("2d", "3d", "studies")
RUNS = tuple(f"{family}-{kind}" for kind in KINDS for family in SIZES)


def draw_folder(folder: Path, count: int = 4) -> None:
    """Grey images of a disc or a square on noise, with masks of one value and a table of what each shows."""
    rng = np.random.default_rng(7)
    rows = ["image_id,disc,square"]
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        disc = number % 2 == 0
        x, y = rng.integers(20, SIDE - 20, 2)
        across, down = np.mgrid[:SIDE, :SIDE]
        away = np.hypot(down - x, across - y) if disc else np.maximum(abs(down - x), abs(across - y))
        mask = away < 16
        image = np.clip(60 + 12 * rng.standard_normal((SIDE, SIDE)) + 110 * mask, 0, 255).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "images" / f"shape{number}.png"))
        sitk.WriteImage(
            sitk.GetImageFromArray((255 * mask).astype(np.uint8)), str(folder / "masks" / f"shape{number}.png")
        )
        rows.append(f"shape{number},{int(disc)},{int(not disc)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def mtmed3d(*arguments: str | Path) -> None:
    """Run a command as a user would."""
    print("mtmed3d", *map(str, arguments), flush=True)
    if code := cli.main([str(each) for each in arguments]):
        raise SystemExit(code)


def learn_images(name: str, out: Path, steps: int) -> dict[str, Any]:
    """Folder to list to model to report, by the standard commands."""
    family = name.removesuffix("-2d")
    draw_folder(out / "images")
    mtmed3d("datalist", out / "images", "-o", out / "list.json", "--images", "--folds", "0", "--overwrite")
    options: dict[str, Any] = {"images": 4, "channels": 1, "warm_up": 10, "weight_decay": 0.0, "clip": 5.0}
    small = {**SMALL[family], "norm": "group"} if family == "resformer" else {}
    document, seconds = train_and_measure(name, out, out / "list.json", {**options, "network_options": small}, steps)
    figures = document["figures"]
    dice = min(value for key, value in figures.items() if key.startswith("dice_"))
    return {"dice": dice, "accuracy": figures["accuracy"], "ap": figures.get("AP_IoU_0.10"), "seconds": seconds}


def train_and_measure(
    name: str, out: Path, listed: Path, options: dict[str, Any], steps: int
) -> tuple[dict[str, Any], float]:
    """Train on all of a list and measure on it; the evaluation's document, and the seconds of the training."""
    family = name.partition("-")[0]
    settings = out / "settings.json"
    settings.write_text(json.dumps(options), encoding="utf-8")
    start = time.monotonic()
    mtmed3d(
        "train", listed, "-o", out / name, "--family", family, "--settings", settings,
        "--feature-size", str(SIZES[family]), "--patch", str(SIDE), "--steps", str(steps), "--workers", "0",
        "--learning-rate", str(RATES.get(name, RATES[family])),
        "--no-augmentation", "--all-cases", "--device", "cpu", "--quiet",
    )  # fmt: skip
    seconds = time.monotonic() - start
    report = out / f"{name}-report"
    mtmed3d(
        "evaluate", listed, "--model", out / name / "bundle", "-o", report, "--device", "cpu", "--quiet", "--overwrite"
    )
    document: dict[str, Any] = json.loads((report / "evaluation.json").read_text())
    return document, seconds


def write_heads(folder: Path, count: int = 2) -> None:
    """Studies in BraTS 2019's folders: a round head with one ball, in the contrasts of `balls`."""
    grid = Grid(HEAD, np.diag([SPACING_MM] * 3 + [1.0]))
    places = np.stack(np.meshgrid(*(np.arange(side) for side in HEAD), indexing="ij"))
    head = torch.from_numpy(np.sqrt(((places - 19.5) ** 2).sum(0)) < 19)
    for number, (image, target) in enumerate(balls(HEAD, count)):
        core, whole, enhancing = target.regions[0] > 0
        labels = torch.zeros(HEAD, dtype=torch.uint8)
        for region, label in ((whole, 2), (core, 1), (enhancing, 4)):
            labels[region & head] = label
        grade = int(target.labels[0].argmax())
        painted = (1.5 + 0.5 * image[0]).clamp(min=0.05) * head
        study = SyntheticStudy(painted, labels, head, [], grade, grid, number, "balls")
        write_study(study, folder / ("LGG", "HGG")[grade] / f"BraTS19_ball{number}_1")


def learn_studies(name: str, out: Path, steps: int) -> dict[str, Any]:
    """Studies to list to model to report, and one of them to findings, by the standard commands."""
    family, folder = name.removesuffix("-studies"), out / "studies"
    if not folder.is_dir():
        write_heads(folder)
    mtmed3d("datalist", folder, "-o", out / "studies.json", "--folds", "0", "--overwrite")
    options: dict[str, Any] = {"spacing_mm": SPACING_MM, "warm_up": 10, "weight_decay": 0.0, "clip": 5.0}
    options["network_options"] = SMALL[family]
    document, seconds = train_and_measure(name, out, out / "studies.json", options, steps)
    summary = {task: each["methods"]["model"] for task, each in document["summary"].items() if each}
    study = next((folder / "HGG").iterdir())
    results = out / f"{name}-results"
    mtmed3d("analyze", study, "-o", results, "--model", out / name / "bundle", "--device", "cpu", "--overwrite")
    findings = json.loads((results / "findings.json").read_text())
    return {
        "dice": min(region["dice"]["value"] for region in summary["segmentation"].values()),
        "accuracy": summary["grading"]["figures"]["accuracy"]["value"],
        "ap": summary["detection"]["figures"]["AP_IoU_0.10"]["value"],
        "analyzed": {"lesions": len(findings["lesions"]), "grade": findings["grade"]},
        "seconds": seconds,
    }


def balls(shape: tuple[int, int, int], count: int = 2) -> list[tuple[torch.Tensor, BatchTarget]]:
    """Volumes of four sequences with one ball; its nested regions, its box, and its kind: bright in T1ce or not."""
    rng = np.random.default_rng(3)
    samples = []
    for number in range(count):
        centre = [rng.integers(13, side - 13) for side in shape]
        grid = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"))
        away = np.sqrt(sum((grid[axis] - centre[axis]) ** 2 for axis in range(3)))
        whole, core, enhancing = away < 12, away < 10, away < 8
        image = 0.3 * rng.standard_normal((4, *shape)).astype(np.float32)
        for place, region in ((3, whole), (2, core), (1 if number % 2 else 0, enhancing)):
            image[place] += 2 * region
        box = [float(c - 11) for c in centre] + [float(c + 12) for c in centre]
        regions = torch.from_numpy(np.stack([core, whole, enhancing])).float()
        target = BatchTarget((regions,), (torch.tensor([box]),), (torch.eye(2)[number % 2],))
        samples.append((torch.from_numpy(image)[None], target))
    return samples


def learn_volumes(name: str, _: Path, steps: int) -> dict[str, Any]:
    """Step a network and its loss, then run it as an analysis does."""
    family = find_family(name.removesuffix("-3d"))
    shape = (64, 32, 32) if "detection" in family.tasks else (32, 32, 32)
    torch.manual_seed(0)
    network = family.for_brain(SIZES[family.name], family.tasks, len(ANCHOR_SHAPES), 32, SMALL[family.name])
    loss = family.make_loss(family.tasks, ANCHOR_SHAPES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATES[family.name], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[family.name], total_steps=steps, pct_start=0.1)
    samples = balls(shape)
    start = time.monotonic()
    for step in range(steps):
        image, target = samples[step % len(samples)]
        losses = loss(image, network(image), target)
        total = sum(family.weights.get(task, 1.0) * each for task, each in losses.items())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(step, {task: round(float(each.detach()), 4) for task, each in losses.items()}, flush=True)
    seconds = time.monotonic() - start
    return {**measure_volumes(network.eval(), samples), "seconds": seconds}


def measure_volumes(network: TaskNetwork, samples: list[tuple[torch.Tensor, BatchTarget]]) -> dict[str, Any]:
    """Dice of the worst region, share of right labels, and average precision of the boxes that an analysis finds."""
    settings = InferenceSettings(window=64, anchor_shapes=ANCHOR_SHAPES, grading_crop=32)
    dice, right, matches = [], [], []
    for image, target in samples:
        shape = tuple(image.shape[2:])
        brain = np.ones(shape, dtype=bool)
        grid = Grid(shape, np.eye(4))
        with torch.inference_mode():
            output = network(image)
        truth, found = target.regions[0].numpy() > 0, output.segmentation[0].numpy() > 0
        dice += [2 * (f & t).sum() / (f.sum() + t.sum()) for f, t in zip(found, truth, strict=True)]
        right.append(int(output.grade.argmax()) == int(target.labels[0].argmax()))
        if output.detection is not None:
            prepared = PreparedStudy(image[0].numpy(), brain, grid, grid, stripped=True)
            raw = run_network(network, prepared, settings)
            matches.append(match_boxes(raw.boxes.tolist(), raw.scores.tolist(), target.boxes[0].tolist()))
    ap = detection_figures(matches)["AP_IoU_0.10"] if matches else None
    return {"dice": float(min(dice)), "accuracy": float(np.mean(right)), "ap": ap}


def main() -> int:
    """Learn, measure, and say whether it was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "families.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.only:
        learn = {"2d": learn_images, "3d": learn_volumes, "studies": learn_studies}[name.partition("-")[2]]
        found = learn(name, options.out, options.steps)
        found["steps"] = options.steps
        found["reached"] = found["dice"] >= 0.95 and found["accuracy"] == 1.0 and found["ap"] in (None, 1.0)
        results[name] = found
        path.write_text(json.dumps(results, indent=1))
        print(name, found, flush=True)
    return 0 if all(results[name]["reached"] for name in options.only) else 1


if __name__ == "__main__":
    raise SystemExit(main())
