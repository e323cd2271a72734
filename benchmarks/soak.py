"""Many requests to one worker process, good and bad ones mixed, with some cancelled: what it holds after each.

    python benchmarks/soak.py OUT --requests 500

Writes soak.json, soak.png (the curve of memory) and soak.md into OUT. The studies are synthetic and small; the bad ones
are those of `Testing.corpus`. After each answer, the process' memory, open files, threads and temporary files are read
from the system. The run is called flat where the mean memory of its last third lies within 5 % of that of the second,
the first third being the time in which libraries are loaded and caches fill; the exit code is 1 where it is not, or
where open files, threads or temporary files have grown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "MTMed3DSlicer")]

import SimpleITK as sitk  # noqa: E402

from MTMed3DCore.sequences import SEQUENCES  # noqa: E402
from MTMed3DCore.volume import read_volume, to_sitk  # noqa: E402
from MTMed3DLib.worker_client import WorkerClient  # noqa: E402
from Testing.corpus.cases import ALL  # noqa: E402
from Testing.corpus.model import write_model  # noqa: E402
from Testing.corpus.plain import AFFINE, save, sequence, write_plain  # noqa: E402

SHAPES = ((40, 44, 36), (32, 36, 30), (48, 48, 40))
PATIENCE_S = 600.0
FLAT = 0.05
KINDS = ("good", "bad", "good", "cancelled", "bad")
"""In turn: two of five requests are good, two bad, one cancelled."""
Fields = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        samples = soak(Path(place), options.requests, options.seed)
    summary = summarise(samples)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps({"summary": summary, "samples": samples}, indent=1) + "\n")
    (options.out / "soak.md").write_text(as_markdown(summary))
    draw(samples, options.out / "soak.png")
    print(as_markdown(summary))
    return int(not summary["flat"] or bool(summary["grown"]))


def soak(place: Path, requests: int, seed: int) -> list[dict[str, Any]]:
    """Ask; one record a request."""
    random = np.random.default_rng(seed)
    model = str(write_model(place / "model").folder)
    good, bad = good_studies(place), bad_studies(place)
    temporary = place / "tmp"
    temporary.mkdir()
    variables = {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    client = WorkerClient([sys.executable, "-m", "MTMed3DCore.worker"], variables)
    samples: list[dict[str, Any]] = []
    pid = None
    for number in range(requests):
        kind = KINDS[number % len(KINDS)]
        chosen = bad if kind == "bad" else good
        name, fields = chosen[int(random.integers(len(chosen)))]
        out = place / "out"
        began = time.perf_counter()
        asked = client.request("analyze", **{"model": model, "device": "cpu", "output": str(out), **fields})
        stage = ("read", "prepare", "infer", "write")[int(random.integers(4))] if kind == "cancelled" else ""
        answer = hear(client, asked, stage)
        seconds = time.perf_counter() - began
        wrong = problem(kind, answer, out)
        shutil.rmtree(out, ignore_errors=True)
        assert pid in (None, client.pid), f"the process died at request {number}: {client.log[-2000:]}"
        pid = client.pid
        assert pid is not None
        samples.append({"request": number, "kind": kind, "name": name, "event": answer["event"],
                        "code": answer.get("code", ""), "seconds": round(seconds, 3), "wrong": wrong,
                        **held(pid), "temporary_files": len(list(temporary.rglob("*")))})  # fmt: skip
        print(
            number, kind, name, answer.get("code", answer["event"]), f"{samples[-1]['mib']:.0f} MiB", wrong, flush=True
        )
    client.stop()
    return samples


def hear(client: WorkerClient, asked: str, cancel_at: str) -> Mapping[str, Any]:
    """The answer to a request, which is cancelled as a stage is reported."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for event in client.poll():
            if event.get("id") != asked:
                continue
            if event["event"] != "progress":
                return event
            if event["stage"] == cancel_at:
                cancel_at = ""
                client.cancel(asked)
        time.sleep(0.005)
    raise SystemExit(f"no answer within {PATIENCE_S} s: {client.log[-2000:]}")


def problem(kind: str, answer: Mapping[str, Any], out: Path) -> str:
    """What is wrong with an answer; a cancel may come too late."""
    if answer.get("code") in ("internal-error", "worker-died"):
        return str(answer["text"])
    if kind == "good" and answer["event"] != "result":
        return f"refused: {answer.get('text')}"
    if kind == "bad" and answer["event"] != "error":
        return "not refused"
    if answer["event"] == "error" and (out.exists() or not (answer["remedy"] or answer["code"] == "cancelled")):
        return "something was written, or there is no remedy"
    return ""


def held(pid: int) -> dict[str, Any]:
    """What the system says of a process."""
    process = psutil.Process(pid)
    with process.oneshot():
        memory = process.memory_info().rss / 2**20
        return {"mib": round(memory, 1), "descriptors": process.num_fds(), "threads": process.num_threads()}


def good_studies(place: Path) -> list[tuple[str, Fields]]:
    """Studies of several sizes, as NIfTI and as NRRD."""
    found = []
    for shape in SHAPES:
        for suffix in (".nii.gz", ".nrrd"):
            folder = place / f"{shape[0]}{suffix}"
            folder.mkdir()
            for name in SEQUENCES:
                image = save(folder / f"{name}.nii.gz", sequence(name, shape), AFFINE)
                if suffix == ".nrrd":
                    sitk.WriteImage(to_sitk(read_volume(image)), str(folder / f"{name}{suffix}"))
            inputs = {name: str(folder / f"{name}{suffix}") for name in SEQUENCES}
            found.append((folder.name, {"inputs": inputs}))
    return found


def bad_studies(place: Path) -> list[tuple[str, Fields]]:
    """Every case of the corpus that the worker refuses."""
    plain = write_plain(place / "plain")
    found: list[tuple[str, Fields]] = []
    for number, case in enumerate(ALL):
        if case.expected.kind != "refused":
            continue
        given = case.make(place / f"bad-{number}" / "case", plain)
        if given.place is None:
            found.append((case.name, {"inputs": {name: str(path) for name, path in given.files.items()},
                                      **given.options}))  # fmt: skip
    return found


def summarise(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures, with the verdict."""
    third = max(len(samples) // 3, 1)
    second, last = samples[third : 2 * third] or samples, samples[2 * third :] or samples

    def mean(part: list[dict[str, Any]], key: str) -> float:
        return statistics.fmean(float(each[key]) for each in part)

    change = mean(last, "mib") / mean(second, "mib") - 1
    slope = float(np.polyfit(range(third, len(samples)), [each["mib"] for each in samples[third:]], 1)[0])
    grown = [key for key in ("descriptors", "threads", "temporary_files")
             if max(each[key] for each in last) > max(each[key] for each in second)]  # fmt: skip
    latency = {}
    for kind in dict.fromkeys(KINDS):
        seconds = [each["seconds"] for each in samples[third:] if each["kind"] == kind]
        if seconds:
            latency[kind] = {f"p{q}": round(float(np.percentile(seconds, q)), 2) for q in (5, 50, 95, 100)}
    ends = {key: samples[-1][key] for key in ("mib", "descriptors", "threads", "temporary_files")}
    wrong = [f"{each['request']} {each['name']}: {each['wrong']}" for each in samples if each["wrong"]]
    answers = dict(Counter(f"{each['kind']}: {each['code'] or each['event']}" for each in samples))
    return {"requests": len(samples), "second_third_mib": round(mean(second, "mib"), 1),
            "last_third_mib": round(mean(last, "mib"), 1), "change": round(change, 4),
            "mib_per_request": round(slope, 3), "flat": bool(abs(change) <= FLAT), "grown": grown, "at_the_end": ends,
            "latency_s": latency, "wrong": wrong, "answers": answers}  # fmt: skip


def as_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a table."""
    ends = summary["at_the_end"]
    rows = [
        ("requests", summary["requests"]),
        ("memory, mean of the second third", f"{summary['second_third_mib']:.0f} MiB"),
        ("memory, mean of the last third", f"{summary['last_third_mib']:.0f} MiB ({summary['change']:+.1%})"),
        ("slope after the first third", f"{summary['mib_per_request']:+.2f} MiB a request"),
        ("flat within 5 %", "yes" if summary["flat"] else "NO"),
        ("open files, threads, temporary files at the end",
         f"{ends['descriptors']}, {ends['threads']}, {ends['temporary_files']}"),
        ("grown in the last third", ", ".join(summary["grown"]) or "nothing"),
        ("wrong answers", len(summary["wrong"])),
    ]  # fmt: skip
    rows += [(f"seconds, {kind}: 5 %, median, 95 %, longest", ", ".join(f"{value:.2f}" for value in each.values()))
             for kind, each in summary["latency_s"].items()]  # fmt: skip
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def draw(samples: list[dict[str, Any]], file: Path) -> None:
    """The curve of memory, with the thirds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot([each["request"] for each in samples], [each["mib"] for each in samples], linewidth=1)
    for share in (1 / 3, 2 / 3):
        axes.axvline(share * len(samples), color="0.7", linewidth=0.8)
    axes.set(xlabel="request", ylabel="resident MiB", ylim=(0, None))
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
