"""Every study through the stations of a Dask cluster's workers.

One task is one study. Dask runs the tasks of a lost worker again elsewhere; a task whose study is in the folder already
finds it there, and two workers that have done the same study commit it one after the other, the second in vain. So
every study is in the result once, whatever Dask does.
"""

from __future__ import annotations

import threading
import zlib
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from MTMed3DCore.cohort.cluster import ClusterSettings, connected
from MTMed3DCore.cohort.folder import CohortFolder
from MTMed3DCore.cohort.outcome import Outcome, Refusal
from MTMed3DCore.cohort.settings import CohortSettings
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.errors import MTMed3DError, OutOfResources

if TYPE_CHECKING:
    from MTMed3DCore.cohort.station import Station

_stations: dict[str, Station] = {}
_opening = threading.Lock()


def analyse_on(
    cluster: ClusterSettings, requests: Sequence[Request], folder: CohortFolder, settings: CohortSettings
) -> Generator[Outcome, None, None]:
    """Outcomes in the order in which studies are finished.

    Where the caller leaves the iteration, or is interrupted in it, nothing more is begun. Workers that this started end
    at once; those of a scheduler that ran already end the studies that they have begun.

    Raises:
        OutOfResources, WrongUse: as `connected` does.
    """
    with ExitStack() as stack:
        client = stack.enter_context(connected(cluster, folder.staging))
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        requests = [_absolute(request) for request in requests]
        numbers = worker_numbers(client.scheduler_info()["workers"])
        futures = {
            client.submit(
                analyse_there, request, folder, settings, numbers, key=f"study-{settings.run}-{number}", pure=False
            ): request.name
            for number, request in enumerate(requests)
        }
        stack.callback(lambda: client.cancel(list(futures), force=True))
        for future in as_completed(futures, loop=client.loop):
            name = futures.pop(future)
            try:
                outcome = future.result()
            except KilledWorker as error:
                outcome = _lost(folder, name, f"{error.allowed_failures + 1} workers ended while they analysed it.")
            except Exception as error:
                outcome = _lost(folder, name, f"Its worker failed: {type(error).__name__}: {error}.")
            future.release()
            yield outcome


def analyse_there(
    request: Request, folder: CohortFolder, settings: CohortSettings, numbers: Mapping[str, int]
) -> Outcome:
    """One study, in a worker's process; every refusal is in the outcome."""
    from distributed import get_worker

    try:
        station = _station(folder, settings, numbers, get_worker().address)
    except MTMed3DError as error:
        return Outcome(request.name, Refusal.of(error), fatal=True)
    return station.analyse(request)


def worker_numbers(workers: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The number of each worker among those of its machine, from 0, by its address.

    Args:
        workers: as in ``Client.scheduler_info()["workers"]``: by address, with ``host``.
    """
    machines: dict[str, list[str]] = defaultdict(list)
    for address, worker in workers.items():
        machines[worker["host"]].append(address)
    return {address: number for each in machines.values() for number, address in enumerate(sorted(each))}


def device_of(asked: str, number: int, gpus: int) -> str:
    """The device of one of several workers on a machine.

    Args:
        asked: of the settings; a GPU that it names by its number is left as it is.
        number: of the worker on its machine.
        gpus: that its process sees; 1 where ``CUDA_VISIBLE_DEVICES`` binds it already.
    """
    return f"cuda:{number % gpus}" if gpus > 1 and asked in ("auto", "cuda") else asked


def _station(folder: CohortFolder, settings: CohortSettings, numbers: Mapping[str, int], address: str) -> Station:
    """The station of this process, opened for the run's first study."""
    from MTMed3DCore.cohort.station import Station

    with _opening:
        if settings.run not in _stations:
            import torch

            for run in list(_stations):  # of a run that is over; its memory goes before the next model is loaded
                station = _stations.pop(run)
                station.stop()
                station.close()
            number = numbers.get(address, zlib.crc32(address.encode()))  # one that came later
            device = device_of(settings.device, number, torch.cuda.device_count())
            _stations[settings.run] = Station(folder, settings, device)
        return _stations[settings.run]


def _absolute(request: Request) -> Request:
    """With paths that do not depend on a process's working directory."""
    case = None if request.case is None else request.case.expanduser().absolute()
    return replace(request, case=case, files={n: p.expanduser().absolute() for n, p in request.files.items()})


def _lost(folder: CohortFolder, name: str, text: str) -> Outcome:
    remedy = "See the workers' logs; its images may need more memory than a worker has."
    refusal = Refusal.of(OutOfResources("worker-lost", text, remedy))
    folder.place(name).fail(refusal)
    return Outcome(name, refusal)
