"""A cohort in one process and on a cluster whose worker is killed: is every study in the result once, and the same?

    python benchmarks/cohort.py OUT [--studies 200] [--workers 2] [--overlap]

Makes small synthetic studies and analyses them three times with ``mtmed3d analyze``: in one process; on a local Dask
cluster, one of whose workers is killed by SIGKILL when a quarter is done; with ``--overlap`` also in one process that
reads, computes and writes in turn. Prints the throughput of each, writes it to OUT/cohort.json, and ends with 1 where a
study is missing, doubled or different, or a temporary file is left. Throughput counts whole commands, with their start.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from MTMed3DCore import bundles
from MTMed3DCore.cohort.folder import OVERVIEW, STATE, SUMMARY
from MTMed3DCore.datalist import build_datalist
from MTMed3DCore.exports import FINDINGS, read_findings
from MTMed3DCore.exports.atomic import PARTIAL
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network
from MTMed3DCore.synthetic import make_study, write_study

SHAPE, SPACING_MM = (44, 50, 44), 4.0
TOLERANCE = 1e-4
"""Of every number in findings.json, relative; threads in other numbers add in another order."""
UNEQUAL = ("created", "timing_s")
"""What no two analyses have in common."""


def make_studies(folder: Path, count: int) -> None:
    """Write synthetic studies that are not there yet."""
    for seed in range(count):
        place = folder / f"synthetic-{seed:05d}"
        if not place.is_dir():
            write_study(make_study(seed, SHAPE, SPACING_MM), place)


def make_model(folder: Path) -> Path:
    """A bundle of a small network with random weights: what it finds is nonsense, and the same every time."""
    if not folder.is_dir():
        torch.manual_seed(0)
        network = build_network("mtmed3d", feature_size=12)
        settings = InferenceSettings(spacing_mm=SPACING_MM, window=64, grading_crop=64)
        bundles.save_bundle(
            folder, network, settings, name="random", version="1", trained_on="Nothing; a benchmark.", card=""
        )
    return folder


def analyse(listed: Path, out: Path, model: str, *options: str) -> subprocess.Popen[bytes]:
    """Begin a command as a user would, into a folder that is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "MTMed3DCore", "analyze", listed, "-o", out, "--model", model, "--quiet", *options]
    print("mtmed3d", *map(str, command[3:]), flush=True)
    return subprocess.Popen([*map(str, command)])


def finished(process: subprocess.Popen[bytes], began: float) -> float:
    """Seconds until a command ended well."""
    if process.wait():
        sys.exit(f"the command ended with {process.returncode}")
    return time.monotonic() - began


def kill_one_worker(leader: int, out: Path, after: int) -> int:
    """Wait for some results, then kill one of the worker processes; returns the number of results by then."""
    while (count := sum(1 for _ in out.glob(f"[!.]*/{FINDINGS}"))) < after:
        if not psutil.pid_exists(leader):
            sys.exit("the run ended before a worker could be killed")
        time.sleep(0.05)
    workers = [
        child for child in psutil.Process(leader).children(recursive=True) if "spawn_main" in str(child.cmdline())
    ]
    os.kill(workers[0].pid, signal.SIGKILL)
    print(f"killed worker process {workers[0].pid} of {len(workers)} after {count} results", flush=True)
    return count


def faults(out: Path, expected: set[str]) -> list[str]:
    """What is wrong with a cohort's folder: studies missing or doubled, files that are left."""
    names = {place.name for place in out.iterdir() if place.is_dir() and place.name != STATE}
    found = [f"{name} is missing" for name in sorted(expected - names)]
    found += [f"{name} is no study" for name in sorted(names - expected)]
    found += [f"{path} is left" for path in out.rglob("*") if PARTIAL in path.name or "staging" in path.name]
    with (out / SUMMARY).open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    times = Counter(row["id"] for row in rows)
    found += [f"{name} is {times[name]} times in {SUMMARY}" for name in sorted(expected) if times[name] != 1]
    found += [f"{row['id']} is {row['status']}: {row['text']}" for row in rows if row["status"] != "done"]
    page = (out / OVERVIEW).read_text(encoding="utf-8")
    return found + [f"{name} is not once in {OVERVIEW}" for name in sorted(expected) if page.count(f">{name}</a>") != 1]


def difference(first: Path, second: Path) -> tuple[int, float]:
    """Voxels that differ between two results of a study, and the greatest relative difference of a number."""
    a, b = read_findings(first), read_findings(second)
    documents = [json.loads((place / FINDINGS).read_text(encoding="utf-8")) for place in (first, second)]
    return int((a.labels != b.labels).sum()), _distance(*documents)


def _distance(a: Any, b: Any) -> float:
    """The greatest relative difference of two JSON values; infinite where they are not alike."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((_distance(a[key], b[key]) for key in a if key not in UNEQUAL), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max((_distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b) / max(1.0, abs(a), abs(b))
    return 0.0 if a == b else float("inf")


def main() -> int:
    """Make, analyse, kill, compare, and say whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", help="default: a small network with random weights")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--overlap", action="store_true", help="also without reading and writing beside computing")
    parser.add_argument("--no-kill", action="store_true", help="leave the workers alone")
    options = parser.parse_args()
    out: Path = options.out.absolute()
    make_studies(out / "studies", options.studies)
    model = options.model or str(make_model(out / "model"))
    build_datalist([out / "studies"], folds=0).write(out / "list.json")
    expected = {f"synthetic-{seed:05d}" for seed in range(options.studies)}

    runs = {"one process": (out / "one", ("--device", options.device))}
    if options.overlap:
        runs["one process, in turn"] = (out / "in-turn", ("--device", options.device, "--in-hand", "1"))
    cluster = ("--device", options.device, "--cluster", "local", "--workers", str(options.workers))
    runs[f"{options.workers} workers"] = (out / "cluster", cluster)
    seconds, wrong = {}, []
    for name, (place, chosen) in runs.items():
        began = time.monotonic()
        process = analyse(out / "list.json", place, model, *chosen)
        if place.name == "cluster" and not options.no_kill:
            kill_one_worker(process.pid, place, max(1, options.studies // 4))
        seconds[name] = finished(process, began)
        wrong += [f"{name}: {fault}" for fault in faults(place, expected)]
    compared = [difference(out / "one" / name, out / "cluster" / name) for name in sorted(expected)]
    voxels, distance = sum(each[0] for each in compared), max(each[1] for each in compared)
    if voxels or distance > TOLERANCE:
        wrong.append(f"results differ: {voxels} voxels, numbers by {distance:.1e}")

    rate = {name: options.studies / value for name, value in seconds.items()}
    print(f"\n{'':<22} {'s':>8} {'studies a minute':>18} {'ratio':>6}")
    for name, value in seconds.items():
        print(f"{name:<22} {value:8.1f} {60 * rate[name]:18.2f} {rate[name] / rate['one process']:6.2f}")
    exact = np.mean([each == (0, 0.0) for each in compared])
    print(f"\n{options.studies} studies, {os.cpu_count()} cores, {torch.cuda.device_count()} GPUs")
    print(f"cluster against one process: {voxels} voxels differ, numbers by {distance:.1e}, {exact:.0%} equal in all")
    report = {"studies": options.studies, "seconds": seconds, "voxels": voxels, "difference": distance, "wrong": wrong}
    (out / "cohort.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n".join(wrong) if wrong else f"every study is in the result of {' and of '.join(runs)} once")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
