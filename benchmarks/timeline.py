"""What the processor or the GPU does during one window: every kernel with its time, and the gaps between them.

    python benchmarks/timeline.py OUT [--features 48] [--side 96] [--device cuda] [--precision bf16] [--compile]

Writes ``timeline.json``, which chrome://tracing and https://ui.perfetto.dev show, and ``kernels.txt``, the kernels by
their share; prints the latter's head and, on a GPU, the share of the time in which it computed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from speed_side import network_of
from torch.profiler import ProfilerActivity, profile

TURNS = 3


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
        spans = [event.time_range for event in seen.events() if event.device_type.name == "CUDA"]
        whole = max(span.end for span in spans) - min(span.start for span in spans)
        print(f"The GPU computed in {sum(span.elapsed_us() for span in spans) / whole:.0%} of {whole / 1000:.1f} ms.")


if __name__ == "__main__":
    main()
