"""The forward pass as this project computes it, beside one assembled from unmodified MONAI parts.

    python benchmarks/speed.py -o OUT [--features 48 12] [--precisions fp32 bf16] [--study FOLDER] [--quick]

Both run in one process, in turns, on the same weights and input: the encoder, each decoder, the whole window, and, with
a study, everything from the prepared volume to regions and boxes (the plain side with MONAI's sliding window at overlap
0.25 over the whole volume, ours over the box of the brain). Prints a table; writes ``speed.json`` and ``speed.png``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch.utils.flop_counter import FlopCounterMode

from MTMed3DCore.allocator import keep_freed_memory
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.inference.windows import plan_windows, run_network
from MTMed3DCore.networks import MultiTaskNetwork, build_network
from MTMed3DCore.preparation import PreparedStudy, prepare
from MTMed3DCore.study import Study

OVERLAP = 0.25
ANCHORS = [[12.0, 12.0, 12.0]]


def plain_and_ours(features: int) -> tuple[MultiTaskNetwork, MultiTaskNetwork]:
    """The same random network twice: MONAI's forward with its defaults, and ours."""
    torch.manual_seed(0)
    plain = build_network("mtmed3d", features, num_anchors=1).eval()
    for module in plain.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = False
    ours = build_network("mtmed3d", features, num_anchors=1).eval()
    ours.load_state_dict(plain.state_dict())
    ours.multiply_out()
    # The class's `encode` gathers windows; the plain side asks MONAI's encoder itself.
    plain.encode = lambda x: plain.encoder(x)  # type: ignore[method-assign]
    return plain, ours


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every repeat of each call, one after the other, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def difference(theirs: Any, ours: Any) -> float:
    """Largest absolute difference of two outputs of the same structure."""
    if isinstance(theirs, torch.Tensor):
        return float((theirs.float() - ours.float()).abs().max())
    return max(difference(a, b) for a, b in zip(theirs, ours, strict=True))


def window_rows(features: int, side: int, precision: str, repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Each part of the network on one window."""
    plain, ours = (network.to(device) for network in plain_and_ours(features))
    x = torch.randn(1, 4, side, side, side, device=device)
    levels = plain.encode(x)
    logits = plain.segment(x, levels)
    parts: dict[str, Callable[[MultiTaskNetwork], Any]] = {
        "encoder": lambda network: network.encode(x),
        "segmentation decoder": lambda network: network.segment(x, levels),
        "detection decoder": lambda network: network.detect(levels),
        "grading branch": lambda network: network.grade(logits),
        "whole window": lambda network: _outputs(network, x),
    }
    rows = []
    for name, part in parts.items():
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            counter = FlopCounterMode(display=False)
            with counter:
                reference = part(plain)
            calls = {"plain": partial(part, plain), "ours": partial(part, ours)}
            row = _row(name, features, precision, in_turns(calls, repeats, device))
            row |= {"side": side, "gflop": counter.get_total_flops() / 1e9}
            row["gflops"] = row["gflop"] / row["ours_s"]
            row["difference"] = difference(reference, part(ours))
            rows.append(row)
    return rows


def _outputs(network: MultiTaskNetwork, x: torch.Tensor) -> list[Any]:
    output = network(x)
    return [output.segmentation, output.grade, output.detection]


def _row(name: str, features: int, precision: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, spread and ratio."""
    row: dict[str, Any] = {"part": name, "features": features, "precision": precision}
    for side, values in seconds.items():
        row[f"{side}_s"] = statistics.median(values)
        row[f"{side}_range_s"] = [min(values), max(values)]
    row["ratio"] = row["plain_s"] / row["ours_s"]
    return row


def whole_volume(study: Study, spacing_mm: float, grid: PreparedStudy) -> torch.Tensor:
    """What a plain implementation computes on: the whole field of view at the working spacing."""
    extent = np.asarray(study.grid.shape) * np.asarray(study.grid.spacing) / spacing_mm
    shape = np.maximum(np.round(extent).astype(int), grid.grid.shape)
    volume = torch.zeros((1, 4, *shape.tolist()))
    first = [(s - n) // 2 for s, n in zip(shape, grid.grid.shape, strict=True)]
    where = tuple(slice(f, f + n) for f, n in zip(first, grid.grid.shape, strict=True))
    volume[(0, slice(None), *where)] = torch.from_numpy(grid.image)
    return volume


def plain_study(network: MultiTaskNetwork, volume: torch.Tensor, side: int, device: torch.device) -> Any:
    """All tasks by MONAI's sliding window, the grade once on the middle of the volume."""

    def window(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        levels = network.encode(x)
        maps = [each for level in network.detect(levels) or [] for each in level]
        segmentation = network.segment(x, levels)
        assert segmentation is not None
        return (segmentation, *maps)

    volume = volume.to(device)
    outputs = sliding_window_inference(volume, side, 1, window, overlap=OVERLAP, mode="gaussian")
    logits = outputs[0]
    middle = [slice(max(0, (n - side) // 2), max(0, (n - side) // 2) + side) for n in logits.shape[2:]]
    network.grade(logits[(..., *middle)])
    return outputs


def study_row(
    features: int, side: int, spacing_mm: float, study: Study, repeats: int, precision: str
) -> dict[str, Any]:
    """From the prepared volume to regions, boxes and grade."""
    device = torch.device("cpu")
    plain, ours = plain_and_ours(features)
    prepared = prepare(study, spacing_mm=spacing_mm, normalisation="zscore_brain")
    settings = InferenceSettings(spacing_mm=spacing_mm, window=side, anchor_shapes=ANCHORS, grading_crop=side)
    volume = whole_volume(study, spacing_mm, prepared)

    def by_monai() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return plain_study(plain, volume, side, device)

    calls = {"plain": by_monai, "ours": lambda: run_network(ours, prepared, settings, device, precision)}
    row = _row("study", features, precision, in_turns(calls, repeats, device))
    row |= {"side": side, "spacing_mm": spacing_mm, "volume": list(volume.shape[2:])}
    row["brain_box"] = list(prepared.grid.shape)
    row["our_windows"] = len(plan_windows(prepared.grid.shape, side)[1])
    ours_plainly = run_network(plain, prepared, settings, device, "fp32").regions >= settings.region_threshold
    found = run_network(ours, prepared, settings, device, precision).regions >= settings.region_threshold
    row["dice_of_same_windows"] = [dice(a, b) for a, b in zip(ours_plainly, found, strict=True)]
    return row


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(f"{'part':22} {'feat':>4} {'prec':>5} {'plain s':>9} {'ours s':>9} {'ratio':>6} {'GFLOP/s':>8} difference")
    for row in rows:
        rate = f"{row['gflops']:8.0f}" if "gflops" in row else " " * 8
        last = f"{row['difference']:.1e}" if "difference" in row else f"Dice {min(row['dice_of_same_windows']):.4f}"
        head = f"{row['part']:22} {row['features']:4d} {row['precision']:>5}"
        print(f"{head} {row['plain_s']:9.3f} {row['ours_s']:9.3f} {row['ratio']:6.2f} {rate} {last}", flush=True)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of both sides, in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.5))
    places = np.arange(len(rows))
    axes.barh(places - 0.2, [row["plain_s"] for row in rows], 0.4, label="MONAI parts as they come", color="#b0b7c3")
    axes.barh(places + 0.2, [row["ours_s"] for row in rows], 0.4, label="this project", color="#2f6f9f")
    for place, row in zip(places, rows, strict=True):
        axes.text(row["ours_s"], place + 0.2, f" {row['ratio']:.1f}x", va="center", fontsize=8)
    axes.set_yticks(places, [f"{row['part']}, {row['features']} features, {row['precision']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds (median)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--features", type=int, nargs="+", default=[48, 12])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    parser.add_argument("--side", type=int, default=96, help="of a window in voxels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--study", type=Path, help="folder of a study, measured end to end as well")
    parser.add_argument("--spacing", type=float, default=1.0, help="working spacing of the study in mm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="12 features, 64 voxels, one repeat")
    options = parser.parse_args()
    features, side, repeats = options.features, options.side, options.repeats
    if options.quick:
        features, side, repeats = [12], 64, 1
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    with torch.no_grad():
        for size in features:
            for precision in options.precisions:
                rows += window_rows(size, side, precision, repeats, torch.device(options.device))
                print_rows(rows[-5:])
                if options.study is not None:
                    study = Study.read(options.study)
                    rows.append(study_row(size, side, options.spacing, study, max(1, repeats // 2), precision))
                    print_rows(rows[-1:])
    options.output.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    (options.output / "speed.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    draw(rows, options.output / "speed.png")


if __name__ == "__main__":
    main()
