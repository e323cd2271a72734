"""A run over a cohort, from its claim of the folder to its summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

from MTMed3DCore.cohort.folder import OVERVIEW, STATE, SUMMARY, CohortFolder
from MTMed3DCore.cohort.outcome import Outcome
from MTMed3DCore.cohort.overview import write_overview
from MTMed3DCore.cohort.rows import DONE, FAILED, PENDING, Overall, totals_of
from MTMed3DCore.cohort.settings import CohortSettings
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.cohort.table import write_table
from MTMed3DCore.errors import MTMed3DError, WrongUse
from MTMed3DCore.evaluation.files import case_name
from MTMed3DCore.process import terminated_as_interrupted

RESERVED = (STATE, SUMMARY, OVERVIEW)
Analyse = Callable[[Sequence[Request], CohortFolder, CohortSettings], Generator[Outcome, None, None]]
"""How the studies are done: `local.analyse_here`, or `remote.analyse_on` with a cluster."""


class Tally:
    """How far a run is.

    Args:
        names: of all studies.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.statuses = dict.fromkeys(names, PENDING)
        """`DONE`, `FAILED` or `PENDING` by the study's name."""
        self.counts = Counter({PENDING: len(self.statuses)})
        self.kept = 0
        """Studies that were done before this run."""
        self.exit_code = 0
        """Of the first refusal."""
        self._began = perf_counter()

    @property
    def total(self) -> int:
        """Studies in all."""
        return len(self.statuses)

    def add(self, outcome: Outcome) -> None:
        """Take an outcome in."""
        status = DONE if outcome.refusal is None else FAILED
        self.counts[self.statuses[outcome.name]] -= 1
        self.counts[status] += 1
        self.statuses[outcome.name] = status
        self.kept += outcome.kept
        if outcome.refusal is not None:
            self.exit_code = self.exit_code or outcome.refusal.exit_code

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return perf_counter() - self._began

    def seconds_left(self) -> float | None:
        """At the pace of the studies that this run has worked on; None before the first one."""
        worked = self.counts[DONE] + self.counts[FAILED] - self.kept
        return self.seconds / worked * self.counts[PENDING] if worked else None


@dataclass(frozen=True)
class Result:
    """What a run has come to.

    Args:
        tally: of the studies.
        overall: sums over the results.
        stopped: what ended the run before its time: a refusal of everything, or None where somebody interrupted it.
        interrupted: whether somebody did.
    """

    tally: Tally
    overall: Overall
    stopped: MTMed3DError | None = None
    interrupted: bool = False


def run_cohort(
    requests: Sequence[Request],
    folder: CohortFolder,
    settings: CohortSettings,
    analyse: Analyse,
    heard: Callable[[Outcome, Tally], None] = lambda outcome, tally: None,
) -> Result:
    """Analyse every study that is not done yet, then write ``summary.csv`` and ``overview.html``.

    A refusal belongs to its study and stops no other one. SIGINT and SIGTERM end the run with what is done kept and
    summarised; the same run later goes on from there.

    Args:
        requests: with different names; see `refuse_names`.
        folder: for the results.
        settings: what is asked of every study.
        analyse: how they are done.
        heard: told of every outcome.

    Raises:
        WrongUse: ``output-busy`` and what else `CohortFolder.claimed` refuses.
        ModelRefused: the model cannot be loaded.
    """
    tally = Tally(request.name for request in requests)
    stopped: MTMed3DError | None = None
    interrupted = False
    with folder.claimed():
        try:
            with terminated_as_interrupted(), closing(analyse(requests, folder, settings)) as outcomes:
                for outcome in outcomes:
                    if outcome.fatal and outcome.refusal is not None:
                        stopped = outcome.refusal.error()
                        break
                    tally.add(outcome)
                    heard(outcome, tally)
        except KeyboardInterrupt:
            interrupted = True
        for name in [name for name, status in tally.statuses.items() if status == PENDING]:
            if folder.place(name).record().get("run") == settings.run:  # committed while the run was being ended
                tally.add(Outcome(name))
        overall = totals_of(requests, folder, tally.statuses, tally.kept, tally.seconds)
        write_table(requests, folder, tally.statuses)
        write_overview(requests, folder, tally.statuses, overall)
    return Result(tally, overall, stopped, interrupted)


def refuse_names(requests: Sequence[Request]) -> None:
    """Refuse names that would bring two studies, or a study and a file of the run, into one place.

    Raises:
        WrongUse: ``study-name-twice``, ``study-name``.
    """
    seen: dict[str, str] = {}
    for request in requests:
        folder = case_name(request.name).casefold()  # some file systems know no capitals
        if folder in seen:
            both = request.name if seen[folder] == request.name else f"{seen[folder]} and {request.name}"
            text = f"More than one study is called {both}, so their results would share a folder."
            raise WrongUse("study-name-twice", text, "List them in a CSV file with a column `id`.")
        if folder in RESERVED or folder.startswith(".mtmed3d"):
            text = f"A study is called {request.name}, as is a file of every cohort."
            raise WrongUse("study-name", text, "List it in a CSV file with a column `id`.")
        seen[folder] = request.name
