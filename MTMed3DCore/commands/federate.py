"""``mtmed3d federate``: train one network at several sites whose studies stay where they are."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.commands.console import (
    Subparsers,
    add_json_option,
    new_parser,
    print_table,
    progress_bar,
    read_settings,
)
from MTMed3DCore.errors import WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.federation.plan import Plan

DESCRIPTION = """\
Trains one network on the studies of several hospitals. Each trains on its own; what it sends are named tensors and
counts, which the server joins. `simulate` tries this on one machine; `serve` and `join` do it between machines, over
Flower. docs/federation.md tells each administrator's part step by step.
"""
EPILOG = """\
examples:
  mtmed3d federate simulate all.json --sites 3 -o trial --rounds 20 --local-steps 200
  mtmed3d federate simulate all.json --by hospital --table hospitals.csv -o trial --methods fedavg bayes local
  mtmed3d federate serve -o federation --address 0.0.0.0:8000 --make-certificate fl.example.org --site-keys keys/*.pub
  mtmed3d federate join mine.json --server fl.example.org:8000 --authority authority.crt --name north -o federation
"""
RULES = ("fedavg", "bayes")
METHODS = ("fedavg", "bayes", "bayes+matching", "local", "centralised")
OPTIONS: tuple[tuple[str, Any, str], ...] = (
    ("rounds", int, "rounds of the federation (default: 10)"),
    ("local-steps", int, "steps of every site in a round (default: 100)"),
    ("damping", float, "of the Bayesian rule: 0 for none, inf for FedAvg (default: 0.3)"),
    ("prior", float, "pull towards the global model while a site trains, Bayesian rule alone (default: 0)"),
    ("memory", float, "share of earlier rounds' precision in the next prior (default: 0)"),
    ("fisher-patches", int, "patches from which a site estimates its precision (default: 8)"),
    ("timeout", float, "seconds that a site has for a round (default: 3600)"),
    ("fewest-sites", int, "updates without which a round changes nothing (default: 1)"),
    ("measure-every", int, "rounds between two measurements of the global model, 0 for none (default: 1)"),
    ("clip", float, "largest norm of what a site changes in a round (default: no limit)"),
    ("noise", float, "noise on it, as a multiple of --clip; FedAvg alone (default: none)"),
)
SCHEMA = "mtmed3d.federation-simulation/1"
DEFAULT_ADDRESS = "127.0.0.1:8000"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command and its own commands."""
    parser = new_parser(
        subparsers, "federate", "train at several sites without moving studies", description=DESCRIPTION, epilog=EPILOG
    )
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)

    trial = new_parser(actions, "simulate", "try a federation on this machine, beside what it is compared with")
    trial.add_argument("list", type=Path, metavar="LIST", help="data list, made by `mtmed3d datalist`")
    trial.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="receives everything")
    trial.add_argument("--sites", type=int, metavar="K", help="split by patient at random into K sites")
    trial.add_argument("--by", metavar="COLUMN", help="a site for each value: grade, fold, source, ..., or of --table")
    trial.add_argument("--table", type=Path, metavar="CSV", help="table with the columns id and the one named by --by")
    trial.add_argument("--methods", nargs="+", choices=METHODS, default=["fedavg"], help="default: fedavg")
    trial.add_argument("--test", type=Path, metavar="LIST", help="studies for the global figure, of no site")
    trial.set_defaults(run=run_simulate)

    server = new_parser(actions, "serve", "run the server of a federation")
    server.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="plan, checkpoints, bundle")
    server.add_argument("--resume", action="store_true", help="go on with the federation in the folder")
    server.add_argument("--rule", choices=RULES, help="how updates are joined (default: fedavg)")
    server.add_argument("--matching", action="store_true", default=None, help="bring units into one order first")
    server.add_argument("--sites", type=int, default=2, metavar="K", help="sites to wait for at the start (default: 2)")
    server.add_argument("--patience", type=float, default=3600.0, metavar="S", help="seconds to wait (default: 3600)")
    server.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help=f"default: {DEFAULT_ADDRESS}")
    server.add_argument("--certificate", type=Path, metavar="PEM", help="of this server")
    server.add_argument("--key", type=Path, metavar="PEM", help="of the certificate")
    server.add_argument("--authority", type=Path, metavar="PEM", help="by which the sites recognise the certificate")
    server.add_argument("--make-certificate", metavar="HOST", help="make all three in FOLDER/credentials for this name")
    server.add_argument("--site-keys", type=Path, nargs="+", default=[], metavar="PUB", help="public key of every site")
    server.set_defaults(run=run_serve)

    site = new_parser(actions, "join", "take part in a federation as a site")
    site.add_argument("list", type=Path, metavar="LIST", help="data list of this site's studies")
    site.add_argument("--server", required=True, metavar="HOST:PORT", help="of the federation")
    site.add_argument("--name", required=True, help="of this site, as the others shall see it")
    site.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="this site's key, log and cache"
    )
    site.add_argument("--authority", type=Path, metavar="PEM", help="sent by the server's administrator")
    site.add_argument(
        "--key", type=Path, metavar="FILE", help="private key (default: FOLDER/site.key, made if missing)"
    )
    site.add_argument("--cache", type=Path, metavar="FOLDER", help="prepared studies (default: FOLDER/cache)")
    site.add_argument("--workers", type=int, default=2, help="processes that cut patches (default: 2)")
    site.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    site.add_argument("--key-only", action="store_true", help="make the key, say where it lies, and stop")
    site.set_defaults(run=run_join)

    for action in (trial, server):
        for name, kind, text in OPTIONS:
            action.add_argument(f"--{name}", type=kind, help=text, metavar="N")
        group = action.add_argument_group("training, as of `mtmed3d train`")
        group.add_argument("--settings", type=Path, metavar="JSON", help="file with training settings")
        group.add_argument("--seed", type=int, help="of the first weights, the patches and the random split")
        group.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: what there is)")
    trial.add_argument("--cache", type=Path, metavar="FOLDER", help="prepared studies, shared by runs")
    trial.add_argument("-q", "--quiet", action="store_true", help="no progress bars")
    for action in (trial, server):
        add_json_option(action)


def run_simulate(options: argparse.Namespace) -> int:
    """Run the methods one after another; leave records, a picture and bundles."""
    from MTMed3DCore.datalist import DataList
    from MTMed3DCore.federation.curves import draw_courses
    from MTMed3DCore.federation.privacy import alias, salt_of
    from MTMed3DCore.federation.simulation import simulate
    from MTMed3DCore.federation.site import Site
    from MTMed3DCore.training.examples import ExampleCache

    out: Path = options.output
    if out.exists() and any(out.iterdir()):
        raise WrongUse("output-not-empty", f"The folder {out} is not empty.", "Choose another one.")
    plan = _plan(options)
    parts = _split(options, DataList.read(options.list), plan.training.seed)
    cache = ExampleCache(options.cache or out / "cache", plan.training.spacing_mm)
    shown = not (options.quiet or options.json)
    courses: dict[str, Any] = {}
    with progress_bar(f"Simulating {len(parts)} sites in {out}", shown) as progress:
        opened = [Site.open(name, cases, cache, plan.training, progress) for name, cases in parts.items()]
        test = () if options.test is None else DataList.read(options.test).cases
        unusable = cache.fill(test, 1, progress)
        test = tuple(case for case in test if case.id not in unusable)
        sites = [site for site, _ in opened]
        for method in options.methods:
            courses[method] = simulate(
                method,
                plan,
                sites,
                test=test,
                folder=None if method == "local" else out / method,
                progress=progress,
            )
    salt = salt_of(cache.folder)
    refused = {site.name: {alias(case, salt): why for case, why in bad.items()} for site, bad in opened if bad}
    document = {
        "schema": SCHEMA,
        "plan": json.loads(plan.to_json()),
        "sites": {site.name: site.counts(plan.training.tasks) for site in sites},
        "refused": refused,
        "methods": {name: {"rounds": course.rounds} for name, course in courses.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "simulation.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw_courses({name: course.rounds for name, course in courses.items()}, out / "curves.png")
    if options.json:
        print(json.dumps(document))
    else:
        _print_courses(courses, out)
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Serve a federation to its last round."""
    from dataclasses import replace

    from MTMed3DCore.federation.coordinator import Coordinator
    from MTMed3DCore.federation.files import BUNDLE, CURVES, PLAN
    from MTMed3DCore.federation.flower_processes import Server, check_flower, serve
    from MTMed3DCore.federation.plan import Plan

    check_flower()
    out: Path = options.output
    host, port = _address(options.address)
    server = Server(host, port, options.certificate, options.key, options.authority, tuple(options.site_keys))
    if options.make_certificate:
        certificate, key, authority = _certificate(out / "credentials", options.make_certificate)
        server = replace(server, certificate=certificate, key=key, authority=authority)
    server.check()
    if options.resume and (out / PLAN).is_file():
        plan = Plan.from_json((out / PLAN).read_text(encoding="utf-8"))
    else:
        plan = _plan(options)
    if Coordinator.start(plan, out, resume=options.resume).finished:
        raise WrongUse("federation-finished", f"The federation in {out} is finished.", "Its model lies in bundle/.")
    _end_children_too()
    serve(server, out, options.sites, options.patience, _say(options.json))
    if options.json:
        print(json.dumps({"bundle": str(out / BUNDLE), "rounds": plan.federation.rounds}))
    else:
        print(f"Finished. The model lies in {out / BUNDLE}; the course of the rounds in {out / CURVES}.")
    return 0


def run_join(options: argparse.Namespace) -> int:
    """Take part until Ctrl-C."""
    from MTMed3DCore.federation.credentials import make_site_key
    from MTMed3DCore.federation.flower_processes import check_flower, join

    check_flower()
    out: Path = options.output
    key = options.key or out / "site.key"
    public = make_site_key(key) if options.key is None else key
    if options.key_only:
        print(f"Send this file to the server's administrator: {public}")
        return 0
    from MTMed3DCore.datalist import DataList
    from MTMed3DCore.inference import choose_device

    cases = DataList.read(options.list).cases
    say = _say(False)
    say(f"{len(cases)} studies of {options.list} stay here. The server's administrator needs {public}.")
    _end_children_too()
    site: dict[str, str | int] = {
        "name": options.name,
        "list": str(options.list.resolve()),
        "cache": str((options.cache or out / "cache").resolve()),
        "device": str(choose_device(options.device)),
        "workers": options.workers,
    }
    join(
        site, options.server, out, authority=options.authority, key=None if options.authority is None else key, say=say
    )
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    from MTMed3DCore.federation.plan import Plan
    from MTMed3DCore.federation.settings import FederationSettings
    from MTMed3DCore.inference import choose_device
    from MTMed3DCore.training.settings import CaseSettings

    plain: dict[str, Any] = {"balancing": "fixed"}
    if options.settings is not None:
        plain |= read_settings(options.settings)
    if options.seed is not None:
        plain["seed"] = options.seed
    if options.device is not None or "device" not in plain:
        plain["device"] = str(choose_device(options.device or "auto"))
    names = [*(name.replace("-", "_") for name, _, _ in OPTIONS), "rule", "matching"]
    chosen = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if chosen.get("prior") and "rule" not in chosen and "bayes" in " ".join(getattr(options, "methods", ())):
        chosen["rule"] = "bayes"
    return Plan.make(FederationSettings(**chosen), CaseSettings.from_dict(plain))


def _split(options: argparse.Namespace, listed: Any, seed: int) -> dict[str, Any]:
    from MTMed3DCore.federation.splitting import split_at_random, split_by

    if (options.sites is None) == (options.by is None):
        raise WrongUse("federation-split", "The sites come from --sites or from --by.", "Give one of the two.")
    if options.by is not None:
        return split_by(listed, options.by, options.table)
    return split_at_random(listed, options.sites, seed)


def _certificate(folder: Path, host: str) -> tuple[Path, Path, Path]:
    from MTMed3DCore.federation.credentials import AUTHORITY, CERTIFICATE, KEY, make_certificate

    if not (folder / CERTIFICATE).is_file():
        make_certificate(folder, host)
    return folder / CERTIFICATE, folder / KEY, folder / AUTHORITY


def _print_courses(courses: dict[str, Any], out: Path) -> None:
    from MTMed3DCore.federation.measuring import FIGURES
    from MTMed3DCore.federation.simulation import GLOBAL

    rows = []
    for method, course in courses.items():
        measured = course.rounds[-1].get("measured", {})
        for site, figures in sorted(measured.items(), key=lambda item: (item[0] != GLOBAL, item[0])):
            rows.append([method, site, *(f"{figures[n]:.3f}" if n in figures else "-" for n in FIGURES)])
    title = f"After {len(next(iter(courses.values())).rounds)} rounds"
    print_table(
        title, ["method", "measured at", *(name.replace("_", " ") for name in FIGURES)], rows, left=["measured at"]
    )
    print(f"Every round: {out / 'simulation.json'}; drawn: {out / 'curves.png'}; the models: {out}/*/bundle.")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise WrongUse("federation-address", f"{text!r} is no address.", "Give HOST:PORT, for example 127.0.0.1:8000.")
    return host, int(port)


def _end_children_too() -> None:
    """Let SIGTERM, by which service managers stop a program, end Flower's processes as Ctrl-C does."""
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)


def _say(as_json: bool) -> Any:
    import sys

    stream = sys.stderr if as_json else sys.stdout
    return lambda text: print(text, file=stream, flush=True)
