"""A federation between real processes of Flower on this machine, over TLS: what is identical, and what faults do.

    python benchmarks/federation_faults.py OUT [--only course privacy]

Runs in the environment that has Flower. Two sites, *north* and *south*, two small synthetic studies each.

``course``: the Bayesian rule with ``--prior`` and ``--matching``. *south* is killed in the middle of its second round
and started again; later the server is killed in the middle of a round and resumed. Then the rounds are computed once
more in this process, with the sites that the record names: every weight must be the same. ``privacy``: FedAvg with
``--clip`` and ``--noise``: the record must state epsilon, and hold no loss and no figure.

Writes ``faults.json``. Ends with 1 where something is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from federation import TRAINING
from safetensors.torch import load_file

from MTMed3DCore.datalist import DataList, build_datalist
from MTMed3DCore.federation.coordinator import Coordinator
from MTMed3DCore.federation.flower_processes import free_port
from MTMed3DCore.federation.plan import Plan
from MTMed3DCore.federation.site import Site
from MTMed3DCore.synthetic import make_study, write_study
from MTMed3DCore.training.examples import ExampleCache

NAMES = ("north", "south")
ROUNDS = 8
PATIENCE = 1800.0
COURSE = ("--rule", "bayes", "--prior", "0.1", "--matching", "--fisher-patches", "1")
PRIVACY = ("--clip", "0.5", "--noise", "0.2")


def make_lists(folder: Path) -> None:
    """``north.json`` and ``south.json``."""
    seed = 0
    for name in NAMES:
        made = 0
        while made < 2:
            study = make_study(seed, (44, 50, 44), 4.0)
            seed += 1
            if study.grade == made:
                grade = "HGG" if made else "LGG"
                write_study(study, folder / name / grade / f"BraTS19_{name}{made}_1")
                made += 1
        build_datalist([folder / name], folds=0).write(folder / f"{name}.json")


def processes_of(pid: int) -> list[int]:
    """A process and those that it started, and they."""
    children = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):  # a process belongs to the thread that started it
        with suppress(OSError):
            children += thread.read_text().split()
    return [pid, *(found for child in map(int, children) for found in processes_of(child))]


class Machine:
    """A command that runs until it is killed, as a machine that loses its power."""

    def __init__(self, log: Path, *arguments: str | Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "MTMed3DCore", "federate", *(str(each) for each in arguments)]
        with log.open("ab") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        self.log = log

    def works(self) -> bool:
        """Whether it computes its part of a round: Flower starts a process for each message."""
        return any("flwr-clientapp" in _command(pid) for pid in processes_of(self.process.pid))

    def kill(self) -> None:
        """Kill all of it at once."""
        for pid in processes_of(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    """Wait, or give up."""
    print(f"{time.strftime('%H:%M:%S')} waiting until {what}", flush=True)
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"It never came about that {what}.")
        time.sleep(0.2)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """What the server has recorded so far."""
    try:
        rounds: list[dict[str, Any]] = json.loads((folder / "federation.json").read_text())["rounds"]
    except FileNotFoundError:
        return []
    return rounds


class Federation:
    """Server and sites of one run, with their keys and certificate."""

    def __init__(self, out: Path, name: str) -> None:
        self.out, self.folder = out, out / name / "server"
        self.address = f"127.0.0.1:{free_port()}"
        self.sites: dict[str, Machine] = {}
        for site in NAMES:
            given = ["--server", self.address, "--name", site, "-o", out / name / site, "--key-only"]
            command = [sys.executable, "-m", "MTMed3DCore", "federate", "join", out / f"{site}.json", *given]
            subprocess.run(command, check=True)
        self.keys = [out / name / site / "site.key.pub" for site in NAMES]

    def serve(self, *options: str | Path) -> None:
        """Start the server."""
        fixed = ("--address", self.address, "--make-certificate", "127.0.0.1", "--site-keys", *self.keys)
        self.server = Machine(self.folder.with_name("server.txt"), "serve", "-o", self.folder, *fixed, *options)
        wait_until("the server has its certificate", (self.folder / "credentials" / "server.crt").is_file)

    def join(self, site: str) -> None:
        """Start a site."""
        given = ("--server", self.address, "--authority", self.folder / "credentials" / "authority.crt")
        own = ("--name", site, "-o", self.folder.with_name(site), "--device", "cpu", "--workers", "0")
        own = (*own, "--cache", self.out / "cache")
        log = self.folder.with_name(f"{site}.txt")
        self.sites[site] = Machine(log, "join", self.out / f"{site}.json", *given, *own)

    def end(self) -> None:
        """End everything."""
        for machine in (self.server, *self.sites.values()):
            machine.kill()


def plan_options(out: Path, rounds: int) -> list[str | Path]:
    """What every server here is started with."""
    settings = out / "settings.json"
    settings.write_text(json.dumps({k: v for k, v in TRAINING.items() if k != "workers"}))
    fixed = ["--sites", "2", "--rounds", str(rounds), "--local-steps", "2", "--measure-every", "0", "--timeout", "900"]
    return [*fixed, "--settings", settings, "--device", "cpu", "--seed", "5"]


def run_course(out: Path) -> dict[str, Any]:
    """Kill a site and the server in mid-round; compare with the same rounds in this process."""
    run = Federation(out, "course")
    told: dict[str, Any] = {}
    try:
        run.serve(*COURSE, *plan_options(out, ROUNDS))
        for site in NAMES:
            run.join(site)
        wait_until("the first round is done", lambda: len(rounds_of(run.folder)) >= 1)
        wait_until("south works on the second", run.sites["south"].works)
        run.sites["south"].kill()
        told["site killed in round"] = len(rounds_of(run.folder)) + 1
        started = time.monotonic()
        run.join("south")
        wait_until(
            "a round is done without south", lambda: any("south" not in r["sites"] for r in rounds_of(run.folder))
        )
        told["its round went on after s"] = round(time.monotonic() - started)
        lost = len(rounds_of(run.folder))
        wait_until("south is back", lambda: any("south" in r["sites"] for r in rounds_of(run.folder)[lost:]))
        told["site back in round"] = rounds_of(run.folder)[-1]["round"]
        wait_until("north works on the next", run.sites["north"].works)
        run.server.kill()
        told["server killed in round"] = len(rounds_of(run.folder)) + 1
        run.serve("--resume", "--sites", "2")
        wait_until("the bundle is there", (run.folder / "bundle" / "configs" / "metadata.json").is_file)
    finally:
        run.end()
    rounds = rounds_of(run.folder)
    told["rounds"] = [{"round": r["round"], "sites": sorted(r["sites"]), "absent": r["absent"]} for r in rounds]
    told |= compare(out, run.folder, rounds)
    told["holds"] = told["identical"] == told["tensors"] and len(rounds) == ROUNDS
    return told


def compare(out: Path, folder: Path, rounds: list[dict[str, Any]]) -> dict[str, int]:
    """How many of the last model's tensors are, bit by bit, those of the same rounds in one process."""
    plan = Plan.from_json((folder / "plan.json").read_text())
    cache = ExampleCache(out / "cache", plan.training.spacing_mm)
    sites = {
        name: Site.open(name, DataList.read(out / f"{name}.json").cases, cache, plan.training)[0] for name in NAMES
    }
    here = Coordinator(plan)
    for record in rounds:
        here.take([sites[name].update(here.state, plan) for name in record["sites"]])
    served = load_file(folder / f"round-{ROUNDS:04d}.safetensors")
    tensors = here.state.tensors
    same = sum(torch.equal(tensor, served[f"tensors.{name}"]) for name, tensor in tensors.items())
    return {"tensors": len(tensors), "identical": same}


def run_privacy(out: Path) -> dict[str, Any]:
    """One round with clipping and noise."""
    run = Federation(out, "privacy")
    try:
        run.serve(*PRIVACY, *plan_options(out, 1))
        for site in NAMES:
            run.join(site)
        wait_until("the bundle is there", (run.folder / "bundle" / "configs" / "metadata.json").is_file)
    finally:
        run.end()
    (record,) = rounds_of(run.folder)
    figures = [value for site in record["sites"].values() for value in site["figures"]]
    plan = Plan.from_json((run.folder / "plan.json").read_text())
    before, after = plan.first_state().tensors, load_file(run.folder / "round-0001.safetensors")
    moved = sum(float((after[f"tensors.{n}"] - t).square().sum()) for n, t in before.items() if t.is_floating_point())
    told = {"sites": sorted(record["sites"]), "epsilon": record.get("epsilon"), "figures sent": len(figures)}
    told |= {"model moved by": round(moved**0.5, 2), "measured": "measured" in record}
    told["holds"] = bool(told["epsilon"]) and not figures and len(record["sites"]) == 2 and not told["measured"]
    return told


def main() -> int:
    """Run, and say what happened."""
    runs = {"course": run_course, "privacy": run_privacy}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=runs, default=list(runs))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also then everything that was started is ended
    out: Path = options.out.resolve()
    if not (out / "south.json").is_file():
        make_lists(out)
    path = out / "faults.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.only:
        results[name] = runs[name](out)
        path.write_text(json.dumps(results, indent=1))
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    return 0 if all(results[name]["holds"] for name in options.only) else 1


if __name__ == "__main__":
    raise SystemExit(main())
