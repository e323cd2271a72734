"""Every study through one station in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress

from MTMed3DCore.cohort.folder import CohortFolder
from MTMed3DCore.cohort.outcome import Outcome
from MTMed3DCore.cohort.settings import CohortSettings
from MTMed3DCore.cohort.station import Station, Tell, nobody
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.errors import Cancelled

LOOK_S = 0.5
"""How often the waiting thread looks up; on Windows a wait without an end would not meet Ctrl-C."""


def analyse_here(
    requests: Sequence[Request], folder: CohortFolder, settings: CohortSettings, tell: Tell = nobody
) -> Generator[Outcome, None, None]:
    """Outcomes in the order in which studies are finished.

    Where the caller leaves the iteration, or is interrupted in it, the study that is computed is given up at its next
    layer, and the one that is written is completed.

    Raises:
        ModelRefused, WrongUse: as `Station` does.
    """
    station = Station(folder, settings, tell=tell)
    running: set[Future[Outcome]] = set()
    with ThreadPoolExecutor(settings.in_hand, "study") as pool:
        try:
            for request in requests:
                while len(running) >= settings.in_hand:
                    yield from _finished(running)
                running.add(pool.submit(station.analyse, request))
            while running:
                yield from _finished(running)
        finally:
            station.stop()
            for future in running:
                future.cancel()
                with suppress(Cancelled):
                    _ = future.cancelled() or future.result()
            station.close()


def _finished(running: set[Future[Outcome]]) -> Iterator[Outcome]:
    done, _ = wait(running, LOOK_S, FIRST_COMPLETED)
    for future in done:
        running.discard(future)
        yield future.result()
