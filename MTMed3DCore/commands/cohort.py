"""What ``mtmed3d analyze`` does with several studies: in this process or on a cluster, resumable, with a summary."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.commands.clinical import check_study, write_more, write_options
from MTMed3DCore.errors import Cancelled, WrongUse

if TYPE_CHECKING:
    from MTMed3DCore.cohort.cluster import ClusterSettings
    from MTMed3DCore.cohort.folder import CohortFolder
    from MTMed3DCore.cohort.outcome import Outcome
    from MTMed3DCore.cohort.run import Analyse, Result, Tally
    from MTMed3DCore.cohort.settings import CohortSettings

SINGLE = ("mask", "preparation", "prior")
"""Options that belong to one study."""
DASHBOARD = "127.0.0.1:8787"
IN_HAND = 3
"""As `MTMed3DCore.cohort.settings.IN_HAND`, named here so that the help loads no numpy."""


def add_cohort_options(parser: argparse.ArgumentParser) -> None:
    """``--in-hand``, ``--cluster`` and what belongs to it."""
    group = parser.add_argument_group("several studies")
    group.add_argument(
        "--in-hand",
        type=int,
        default=IN_HAND,
        metavar="N",
        help=f"studies in memory at a time; 1 reads, computes and writes in turn (default: {IN_HAND})",
    )
    group.add_argument(
        "--cluster",
        metavar="WHERE",
        help="do them on Dask: local (processes on this machine), tcp://HOST:PORT (a scheduler that runs), or slurm",
    )
    group.add_argument("--workers", type=int, default=1, metavar="N", help="workers of the cluster (default: 1)")
    group.add_argument(
        "--cluster-host", metavar="ADDRESS", help="where the scheduler listens (default: 127.0.0.1; slurm needs it)"
    )
    group.add_argument(
        "--dashboard",
        nargs="?",
        const=DASHBOARD,
        metavar="HOST:PORT",
        help=f"Dask's dashboard, which is off otherwise ({DASHBOARD} unless said)",
    )
    group.add_argument(
        "--slurm", action="append", default=[], metavar="NAME=VALUE", help="of the SLURM jobs, for example memory=16GB"
    )


def refuse_for_one(options: argparse.Namespace) -> None:
    """Refuse what belongs to several studies where one is given."""
    if options.cluster is not None:
        raise WrongUse("usage", "--cluster is for several studies, and one is given.", "Leave it out.")


def analyze_cohort(options: argparse.Namespace, requests: Sequence[Request]) -> int:
    """Analyse every study that is not done yet; returns 0 or the exit code of the first refusal.

    Raises:
        Cancelled: by Ctrl-C or SIGTERM, after the summary of what is done is written.
        MTMed3DError: what would be every study's refusal.
    """
    for name in SINGLE:
        if getattr(options, name, None) is not None:
            raise WrongUse("usage", f"--{name} belongs to one study, and several are given.", "Analyse it on its own.")
    if options.in_hand < 1:
        raise WrongUse("usage", f"--in-hand {options.in_hand} is too few.", "Give 1 or more.")
    cluster = cluster_settings(options)
    from MTMed3DCore.cohort.folder import CohortFolder
    from MTMed3DCore.cohort.run import refuse_names, run_cohort

    refuse_names(requests)
    settings = cohort_settings(options)
    folder = CohortFolder(options.output.absolute())
    with listeners(options, len(requests)) as (tell, heard):
        result = run_cohort(requests, folder, settings, way_of(cluster, tell), heard)
    if options.json:
        print_json(requests, folder, result)
    else:
        show(result, folder)
    if result.stopped is not None:
        raise result.stopped
    if result.interrupted:
        done = f"{result.tally.counts['done']} of {result.tally.total}"
        raise Cancelled(f"Stopped with {done} studies done; the same command goes on.")
    return result.tally.exit_code


def cluster_settings(options: argparse.Namespace) -> ClusterSettings | None:
    """The cluster that the options name; None for this process.

    Raises:
        WrongUse: options that contradict each other, see `ClusterSettings`.
    """
    if options.cluster is None:
        if options.workers != 1 or options.cluster_host or options.dashboard or options.slurm:
            text = "--workers, --cluster-host, --dashboard and --slurm are of use with --cluster alone."
            raise WrongUse("usage", text, "Add --cluster local, or leave them out.")
        return None
    from MTMed3DCore.cohort.cluster import ClusterSettings

    slurm = dict(text.partition("=")[::2] for text in options.slurm)
    if not all(name and value for name, value in slurm.items()):
        raise WrongUse("usage", "--slurm takes NAME=VALUE.", "For example --slurm memory=16GB.")
    return ClusterSettings(options.cluster, options.workers, options.cluster_host, options.dashboard, slurm)


def cohort_settings(options: argparse.Namespace) -> CohortSettings:
    """What the options ask of every study."""
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.cohort.settings import CohortSettings

    bundle = find_bundle(options.model)
    bids: Path | None = getattr(options, "bids", None)
    # In a dataset, too, a study that is done again takes the place of its earlier result.
    clinical = argparse.Namespace(dicom=getattr(options, "dicom", None), overwrite=True, bids=bids and bids.absolute())
    return CohortSettings(
        model=bundle.folder,
        model_sha256=bundle.sha256,
        device=options.device,
        precision=options.precision,
        write=write_options(clinical),
        more={"bids": str(clinical.bids) if bids else None},
        check=partial(check_study, clinical),
        also=partial(write_more, clinical) if bids else None,
        overwrite=options.overwrite,
        in_hand=options.in_hand,
        mode=options.mode,
        check_uncertainty=options.check_uncertainty,
        compiled=options.compiled,
    )


def way_of(cluster: ClusterSettings | None, tell: Callable[[str, str, float, str], None]) -> Analyse:
    """How the studies are done."""
    if cluster is None:
        from MTMed3DCore.cohort.local import analyse_here

        return partial(analyse_here, tell=tell)
    from MTMed3DCore.cohort.remote import analyse_on

    return partial(analyse_on, cluster)


@contextmanager
def listeners(options: argparse.Namespace, total: int) -> Iterator[tuple[Any, Any]]:
    """What hears of steps and of outcomes: a bar on a terminal, a line for each study elsewhere."""
    shown = not (options.json or options.quiet)
    if not shown or not sys.stderr.isatty():
        yield (lambda name, stage, fraction, text: None), partial(print_outcome, lines=shown)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    console = Console(stderr=True)
    with Progress(*columns, TextColumn("{task.description}"), console=console) as bars:
        bar = bars.add_task("Loading the model", total=total, left="")

        def tell(name: str, stage: str, fraction: float, text: str) -> None:
            bars.update(bar, description=f"{name}: {text}".replace("[", r"\["))

        def heard(outcome: Outcome, tally: Tally) -> None:
            print_outcome(outcome, tally, lines=False)
            bars.update(bar, completed=total - tally.counts["pending"], left=words_left(tally))

        yield tell, heard


def print_outcome(outcome: Outcome, tally: Tally, *, lines: bool) -> None:
    """Say a refusal at once; with `lines` say every other outcome as well."""
    if outcome.refusal is not None:
        remedy = f" {outcome.refusal.remedy}" if outcome.refusal.remedy else ""
        print(f"error: {outcome.name}: {outcome.refusal.text}{remedy}", file=sys.stderr, flush=True)
    elif lines and not outcome.kept:
        number = tally.total - tally.counts["pending"]
        left = words_left(tally)
        said = f"{number} of {tally.total}: {outcome.name}: {outcome.text}, {outcome.seconds:.1f} s"
        print(f"{said}; {left}" if left else said, file=sys.stderr, flush=True)


def words_left(tally: Tally) -> str:
    """The failures so far, and the time that is left at the present pace."""
    from MTMed3DCore.cohort.overview import duration

    left = tally.seconds_left()
    failed = f"{tally.counts['failed']} failed" if tally.counts["failed"] else ""
    time = "" if left is None or not tally.counts["pending"] else f"{duration(left)} left"
    return ", ".join(part for part in (failed, time) if part)


def print_json(requests: Sequence[Request], folder: CohortFolder, result: Result) -> None:
    """Every study with its findings or its refusal; printed one at a time."""
    from MTMed3DCore.cohort.rows import rows

    print('{"studies": [', end="")
    for number, row in enumerate(rows(requests, folder, result.tally.statuses)):
        refusal = row.refusal
        error = None if refusal is None else {"code": refusal.code, "text": refusal.text, "remedy": refusal.remedy}
        answer = {"id": row.name, "output": str(row.folder), "status": row.status, "findings": row.findings}
        print(",\n" if number else "\n", json.dumps({**answer, "error": error}), sep="", end="")
    print("\n]}")


def show(result: Result, folder: CohortFolder) -> None:
    """How many studies are done, and where to look."""
    from MTMed3DCore.cohort.folder import OVERVIEW, SUMMARY
    from MTMed3DCore.cohort.overview import duration
    from MTMed3DCore.findings import RESEARCH_USE

    tally = result.tally
    parts = [f"{tally.counts['done']} of {tally.total} studies analysed"]
    parts += [f"{tally.kept} of them before this run"] if tally.kept else []
    parts += [f"{tally.counts[each]} {word}" for each, word in (("failed", "failed"), ("pending", "left"))
              if tally.counts[each]]  # fmt: skip
    print(f"{', '.join(parts)}; {duration(result.overall.wall_s)}.")
    print(f"Overview   {folder.root / OVERVIEW}\nTable      {folder.root / SUMMARY}\nResults    {folder.root}")
    print(RESEARCH_USE)
