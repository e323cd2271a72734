"""The forward pass as this project computes it, beside one assembled from unmodified MONAI parts.

    python benchmarks/speed.py -o OUT [--features 48 12] [--precisions fp32 bf16] [--quick]
    python benchmarks/speed.py -o OUT --parts --study FOLDER --modes exact quick [--weights starter]
    python benchmarks/speed.py -o OUT --shapes      # what the cost model predicts against what windows take

Each side has a process of its own, so that neither profits from the other's settings: the plain one runs as any script
of its user would, ours with its allocator setting. They take turns, part by part, on the same weights and input: the
encoder, each decoder, the whole window, and, with a study, everything from the prepared volume to regions and boxes
(the plain side by MONAI's sliding window at overlap 0.25 over the whole volume, ours over the box of the brain, in one
of its modes, or, as ``same`` and ``same-lean``, in the plain side's windows). With ``--weights`` networks of any size
have the function of a bundle's (`widening.py`), so that they find what it finds; the time of the lean and of the quick
mode depends on that.
Prints a table; writes ``speed.json`` and ``speed.png``. Time on the processor stands beside the clock's, because other
programs disturb it less. On a GPU in bf16 the table says which share of its peak (``--peak-tflops``) our side reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed_side import PARTS, SAME, SAME_LEAN, SIDES, STUDY, count_flops

from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.inference.pipeline import MODES

SHAPES = (
    (64, 64, 64),
    (96, 64, 64),
    (96, 96, 64),
    (96, 96, 96),
    (128, 64, 64),
    (128, 96, 64),
    (128, 96, 96),
    (128, 128, 64),
    (160, 96, 64),
    (160, 96, 96),
)
PEAK_TFLOPS = 790.0
"""What an H200 is taken to reach in bf16 at most, unless another peak is given."""


class Side:
    """One side, computing in a process of its own.

    Args:
        name: one of `SIDES`.
        setting: arguments of `speed_side.Network`, as JSON types.
    """

    def __init__(self, name: str, setting: dict[str, Any]) -> None:
        command = [sys.executable, str(Path(__file__).with_name("speed_side.py")), name, json.dumps(setting)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, part: str, output: Path | None = None) -> dict[str, float]:
        """Compute a part once: seconds, seconds on the processor, and the peak of memory so far in MiB.

        Args:
            part: one of `PARTS`, or `STUDY`.
            output: where the part's tensors go.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(
            json.dumps({"part": part, "output": str(output) if output else None}), file=self._process.stdin, flush=True
        )
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"The process of one side ended with {self._process.wait()} in {part}.")
        figures: dict[str, float] = json.loads(answer)
        return figures

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def compare(setting: dict[str, Any], parts: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """A row for each part: both sides in turns, after the rounds of `warm_ups`, which do not count."""
    rows = []
    sides = {name: Side(name, setting) for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for part in parts:
                files = {name: Path(folder) / f"{name}.pt" for name in SIDES}
                figures: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
                warm_up = warm_ups(part, setting)
                for turn in range(warm_up + repeats):
                    for name, side in sides.items():
                        asked = side.ask(part, files[name] if turn == 0 else None)
                        if turn >= warm_up:
                            figures[name].append(asked)
                outputs = {name: torch.load(file, weights_only=True) for name, file in files.items()}
                rows.append(_row(part, setting, figures) | _agreement(part, outputs["plain"], outputs["ours"]))
                print_row(rows[-1])
        finally:
            for side in sides.values():
                side.close()
    return rows


def warm_ups(part: str, setting: dict[str, Any]) -> int:
    """Rounds before those that count: none of a whole study, unless a first one sets up a GPU, or compiles."""
    return 0 if part == STUDY and setting["device"] == "cpu" and not setting["compiled"] else 1


def peak_of(device: str, precision: str, given: float | None) -> float | None:
    """TFLOP/s of a GPU at most, as given or `PEAK_TFLOPS` for bf16; None where none is known."""
    return given or (PEAK_TFLOPS if device.startswith("cuda") and precision == "bf16" else None)


def _row(part: str, setting: dict[str, Any], figures: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, spread, ratios and rates."""
    row: dict[str, Any] = {"part": part, **setting}
    for name, asked in figures.items():
        for figure in ("seconds", "processor_s"):
            values = [each[figure] for each in asked]
            row[f"{name}_{figure}"] = statistics.median(values)
            row[f"{name}_{figure}_range"] = [min(values), max(values)]
        row[f"{name}_peak_mib"] = max(each["peak_mib"] for each in asked)
    row["ratio"] = row["plain_seconds"] / row["ours_seconds"]
    row["processor_ratio"] = row["plain_processor_s"] / row["ours_processor_s"]
    if part != STUDY:
        row["gflop"] = count_flops(setting["features"], setting["side"], part) / 1e9
        # Of the plain form's operations: what ours saves counts as speed.
        row["plain_gflops"], row["ours_gflops"] = (row["gflop"] / row[f"{name}_seconds"] for name in SIDES)
        if setting["peak_tflops"] is not None:
            row["peak_share"] = row["ours_gflops"] / 1e3 / setting["peak_tflops"]
    return row


def _agreement(part: str, theirs: list[torch.Tensor], ours: list[torch.Tensor]) -> dict[str, Any]:
    """Largest difference of two outputs, and the Dice of the regions where the part segments."""
    agreement: dict[str, Any] = {}
    if part != STUDY:
        agreement["difference"] = max(float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=True))
    if part in (STUDY, "whole window", "segmentation decoder"):
        pairs = zip(theirs[0][0].numpy() > 0, ours[0][0].numpy() > 0, strict=True)
        agreement["dice"] = [dice(a, b) for a, b in pairs]
    return agreement


def print_head() -> None:
    """Of the table."""
    print(
        f"{'part':22} {'feat':>4} {'prec':>5} {'plain s':>8} {'min-max':>15} {'ours s':>8} {'min-max':>15} "
        f"{'ratio':>6} {'cpu':>6} {'GFLOP':>6} {'GFLOP/s':>8} {'peak':>5} {'MiB':>13} difference, Dice"
    )


def _named(row: dict[str, Any]) -> str:
    """The part, and of a study the mode."""
    return f"{row['part']}, {row['mode']}" if "mode" in row else str(row["part"])


def print_row(row: dict[str, Any]) -> None:
    """Of the table."""
    plain, ours = (
        f"{row[f'{name}_seconds']:8.3f} {'-'.join(f'{each:.3f}' for each in row[f'{name}_seconds_range']):>15}"
        for name in SIDES
    )
    rate = f"{row['gflop']:6.0f} {row['ours_gflops']:8.0f}" if "gflop" in row else " " * 15
    peak = f"{row['peak_share']:5.1%}" if "peak_share" in row else " " * 5
    memory = f"{row['plain_peak_mib']:6.0f} {row['ours_peak_mib']:6.0f}"
    difference = f"{row['difference']:.1e}" if "difference" in row else " " * 7
    overlap = f"{min(row['dice']):.4f}" if "dice" in row else ""
    print(
        f"{_named(row):22} {row['features']:4d} {row['precision']:>5} {plain} {ours} {row['ratio']:6.2f} "
        f"{row['processor_ratio']:6.2f} {rate} {peak} {memory} {difference} {overlap}",
        flush=True,
    )


def against_fp32(rows: list[dict[str, Any]]) -> None:
    """Give every row in bf16 its ratio to the plain side in fp32."""
    plain = {(row["part"], row["features"]): row["plain_seconds"] for row in rows if row["precision"] == "fp32"}
    for row in rows:
        single = plain.get((row["part"], row["features"]))
        if row["precision"] == "bf16" and single is not None:
            row["ratio_to_plain_fp32"] = single / row["ours_seconds"]
            print(f"{row['part']:22} {row['features']:4d}  bf16 against plain fp32: {row['ratio_to_plain_fp32']:.2f}")


def predicted_and_measured(features: int, precision: str, device: torch.device) -> list[dict[str, Any]]:
    """Ten shapes of windows: the seconds that the cost model predicts from two, and those that segmentation takes."""
    from speed_side import network_of

    from MTMed3DCore.inference.measured import window_cost, window_seconds

    network = network_of("ours", features, device)
    with tempfile.TemporaryDirectory() as folder:  # not what an earlier form of the network took
        os.environ["MTMED3D_CACHE"] = folder
        cost = window_cost(network, 4, device, precision)
    rows = []
    print(f"{'window':>12} {'predicted s':>12} {'measured s':>11} {'error':>6}")
    for shape in SHAPES:
        predicted = cost.seconds([shape])
        measured = window_seconds(network, (1, 4, *shape), device, precision)
        rows.append({"shape": list(shape), "predicted_s": predicted, "measured_s": measured})
        print(f"{'x'.join(map(str, shape)):>12} {predicted:12.3f} {measured:11.3f} {predicted / measured - 1:+6.0%}")
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of both sides, in seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.5))
    places = np.arange(len(rows))
    axes.barh(
        places - 0.2, [row["plain_seconds"] for row in rows], 0.4, label="MONAI parts as they come", color="#b0b7c3"
    )
    axes.barh(places + 0.2, [row["ours_seconds"] for row in rows], 0.4, label="this project", color="#2f6f9f")
    for place, row in zip(places, rows, strict=True):
        axes.text(row["ours_seconds"], place + 0.2, f" {row['ratio']:.1f}x", va="center", fontsize=8)
    axes.set_yticks(places, [f"{_named(row)}, {row['features']} features, {row['precision']}" for row in rows])
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
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--side", type=int, default=96, help="of a window in voxels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--study", type=Path, help="folder of a study, measured end to end as well")
    parser.add_argument("--weights", help="bundle whose function networks of any size get; random weights without it")
    parser.add_argument("--study-repeats", type=int, default=2)
    parser.add_argument("--spacing", type=float, default=1.0, help="working spacing of the study in mm")
    parser.add_argument(
        "--modes", nargs="+", default=["exact"], choices=(SAME, SAME_LEAN, *MODES), help="of our side, for the study"
    )
    parser.add_argument("--shapes", action="store_true", help="check the cost model on ten shapes instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", dest="compiled", action="store_true", help="our side by torch's compiler")
    parser.add_argument(
        "--peak-tflops", type=float, help=f"of the device, in every precision ({PEAK_TFLOPS:.0f} for bf16 on a GPU)"
    )
    parser.add_argument("--quick", action="store_true", help="12 features, 64 voxels, one repeat")
    options = parser.parse_args()
    features, side, repeats = options.features, options.side, options.repeats
    if options.quick:
        features, side, repeats = [12], 64, 1
    rows: list[dict[str, Any]] = []
    if options.shapes:
        device = torch.device(options.device)
        rows = [row for size in features for row in predicted_and_measured(size, options.precisions[0], device)]
    else:
        print_head()
        for size in features:
            for precision in options.precisions:
                setting = {"features": size, "side": side, "precision": precision, "device": options.device}
                setting |= {"study": None, "spacing_mm": options.spacing, "weights": options.weights}
                setting |= {"compiled": options.compiled}
                setting |= {"peak_tflops": peak_of(options.device, precision, options.peak_tflops)}
                if options.parts:
                    rows += compare(setting, tuple(options.parts), repeats)
                for mode in options.modes if options.study is not None else ():
                    told = {"study": str(options.study), "mode": mode}
                    rows += compare(setting | told, (STUDY,), options.study_repeats)
        against_fp32(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    machine |= {"cores": os.cpu_count(), "instructions": torch.backends.cpu.get_cpu_capability()}
    (options.output / "speed.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    if not options.shapes:
        draw(rows, options.output / "speed.png")


if __name__ == "__main__":
    main()
