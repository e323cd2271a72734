"""What a warm worker saves: the first and the next requests of one process, beside the command line.

    python benchmarks/worker.py STUDY [--model starter] [--device cpu] [--requests 4]

Seconds on the clock from the question to the answer, results on the disk included; those of the first request begin
before the process does. The stages are those that the findings tell.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "MTMed3DSlicer")]

from MTMed3DCore.exports import FINDINGS  # noqa: E402
from MTMed3DCore.sequences import find_sequences  # noqa: E402
from MTMed3DLib.worker_client import WorkerClient  # noqa: E402

STAGES = ("read", "prepare", "infer", "write")


def answered(client: WorkerClient, asked: str) -> Mapping[str, Any]:
    """The answer to a request."""
    while True:
        for event in client.poll():
            if event.get("id") == asked and event["event"] in ("result", "error"):
                return event
        time.sleep(0.005)


def stages(out: Path) -> dict[str, float]:
    """Seconds of each stage, of the findings in a folder."""
    timing = json.loads((out / FINDINGS).read_text())["timing_s"]
    return {stage: timing[stage] for stage in STAGES}


def by_worker(study: Path, model: str, device: str, requests: int, place: Path) -> list[dict[str, float]]:
    """A row for each request to one process."""
    rows = []
    inputs = {name: str(path) for name, path in find_sequences(study).items()}
    began = time.perf_counter()
    client = WorkerClient([sys.executable, "-m", "MTMed3DCore.worker"], {"PYTHONPATH": str(ROOT)})
    for number in range(requests):
        out = place / f"worker-{number}"
        fields = {"inputs": inputs, "model": model, "output": str(out), "device": device}
        answer = answered(client, client.request("analyze", **fields))
        if answer["event"] == "error":
            sys.exit(f"The worker refused: {answer}")
        rows.append({"total": time.perf_counter() - began, **stages(out)})
        began = time.perf_counter()
    client.stop()
    return rows


def by_command(study: Path, model: str, device: str, place: Path) -> dict[str, float]:
    """The same by ``mtmed3d analyze``, a process of its own."""
    out = place / "command"
    command = [sys.executable, "-m", "MTMed3DCore", "analyze", study, "-o", out, "--model", model, "--device", device]
    began = time.perf_counter()
    subprocess.run([*map(str, command), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return {"total": time.perf_counter() - began, **stages(out)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = {"command line": by_command(options.study, options.model, options.device, Path(folder))}
        asked = by_worker(options.study, options.model, options.device, options.requests, Path(folder))
        rows |= {f"worker, request {number}": row for number, row in enumerate(asked, start=1)}
    print(f"{'':20}" + "".join(f"{name:>9}" for name in ("total", *STAGES)))
    for name, row in rows.items():
        print(f"{name:20}" + "".join(f"{row[figure]:9.2f}" for figure in ("total", *STAGES)))


if __name__ == "__main__":
    main()
