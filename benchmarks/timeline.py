"""What the processor or the GPU does during one window: every kernel with its time, and the gaps between them.

    python benchmarks/timeline.py OUT [--features 48] [--side 96] [--device cuda] [--precision bf16] [--compile]

Writes ``timeline.json``, which chrome://tracing and https://ui.perfetto.dev show, and ``kernels.txt``, the kernels by
their share; prints the latter's head and, on a GPU, the share of the time in which it computed, and of its peak.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from speed import PEAK_TFLOPS, peak_of
from speed_side import count_flops, network_of
from torch.profiler import ProfilerActivity, profile

TURNS = 3
COMPUTED = ("encoder", "detection decoder", "segmentation decoder")
"""Parts of `speed_side.PARTS` that a window takes here."""


def busy_and_whole(events: Iterable[Any]) -> tuple[float, float]:
    """Microseconds in which a GPU computed, and those from its first kernel to its last.

    Kernels that ran beside each other count once, and ranges that only name what lies in them not at all.

    Args:
        events: of `torch.profiler.profile`.
    """
    on_gpu = [each for each in events if each.device_type.name == "CUDA" and not each.is_user_annotation]
    spans = sorted((each.time_range.start, each.time_range.end) for each in on_gpu)
    busy, until = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy, until - spans[0][0]


def main() -> None:
    """Profile, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--features", type=int, default=48)
    parser.add_argument("--side", type=int, default=96, help="of a window in voxels")
    parser.add_argument("--batch", type=int, default=1, help="windows at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--compile", dest="compiled", action="store_true", help="by torch's compiler")
    parser.add_argument("--peak-tflops", type=float, help=f"of the GPU ({PEAK_TFLOPS:.0f} for bf16)")
    options = parser.parse_args()
    device = torch.device(options.device)
    network = network_of("ours", options.features, device, compiled=options.compiled)
    x = torch.randn(options.batch, 4, *(options.side,) * 3, device=device)

    def window() -> None:
        levels = network.encode(x)
        network.detect(levels)
        network.segment(x, levels)

    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        for _ in range(TURNS):
            window()
        if on_gpu:
            torch.cuda.synchronize(device)
        with profile(activities=activities) as seen:
            window()
            if on_gpu:
                torch.cuda.synchronize(device)
    options.output.mkdir(parents=True, exist_ok=True)
    seen.export_chrome_trace(str(options.output / "timeline.json"))
    kernels = seen.key_averages()
    table = kernels.table(sort_by=f"self_{device.type}_time_total", row_limit=60)
    (options.output / "kernels.txt").write_text(table)
    print("\n".join(table.splitlines()[:24]))
    if on_gpu:
        busy, whole = busy_and_whole(seen.events())
        print(f"The GPU computed in {busy / whole:.0%} of {whole / 1000:.1f} ms.")
        # Of the plain form's operations: what ours saves counts as speed.
        flop = options.batch * sum(count_flops(options.features, options.side, part) for part in COMPUTED)
        rate, peak = flop / whole / 1e6, peak_of(options.device, options.precision, options.peak_tflops)
        share = "" if peak is None else f", {rate / peak:.1%} of {peak:.0f} TFLOP/s"
        print(f"{flop / 1e9:.0f} GFLOP: {rate:.1f} TFLOP/s{share}.")


if __name__ == "__main__":
    main()
