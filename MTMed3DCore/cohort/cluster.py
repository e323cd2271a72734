"""Dask clusters: processes on this machine, a scheduler that runs already, or jobs of a SLURM queue.

Whoever reaches the ports of a Dask scheduler or worker can run code there. So everything listens on 127.0.0.1 unless
the user names another address, dashboards are off unless asked for, and what SLURM starts on other machines speaks TLS
with certificates made for this one run. Dask sends nothing to anybody else.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.cohort.settings import IN_HAND
from MTMed3DCore.errors import OutOfResources, WrongUse

if TYPE_CHECKING:
    from distributed import Client

LOCAL, SLURM = "local", "slurm"
SCHEMES = ("tcp://", "tls://")
LOOPBACK = "127.0.0.1"
CONNECT_S = 20
LOG_LEVEL = "error"
"""Of Dask's own log; it reports every connection that is opened or closed."""
PRELOAD = "MTMed3DCore.cohort.preload"


@dataclass(frozen=True)
class ClusterSettings:
    """Which cluster.

    Args:
        where: `LOCAL`, `SLURM`, or the address of a scheduler, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``.
        workers: processes to start; with a scheduler's address, workers to wait for.
        host: address on which a scheduler that is started here listens; None for `LOOPBACK`.
        dashboard: ``HOST:PORT`` of the scheduler's dashboard, or None for none.
        slurm: keyword arguments of ``dask_jobqueue.SLURMCluster``, over those of the user's Dask configuration.

    Raises:
        WrongUse: ``cluster-unknown``, ``cluster-workers``, ``cluster-options`` or ``cluster-host``.
    """

    where: str
    workers: int = 1
    host: str | None = None
    dashboard: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        remote = self.where.startswith(SCHEMES)
        if self.where not in (LOCAL, SLURM) and not remote:
            text = f"There is no cluster {self.where!r}."
            raise WrongUse("cluster-unknown", text, "Use local, slurm, or a scheduler's address, tcp://HOST:PORT.")
        if self.workers < 1:
            raise WrongUse("cluster-workers", f"A cluster cannot have {self.workers} workers.", "Give 1 or more.")
        if remote and (self.host or self.dashboard):
            text = "The scheduler runs already; where it and its dashboard listen is settled."
            raise WrongUse("cluster-options", text, "Leave out --cluster-host and --dashboard.")
        if self.slurm and self.where != SLURM:
            raise WrongUse("cluster-options", "--slurm is of use with --cluster slurm alone.", "Leave it out.")
        if self.where == SLURM and self.host is None:
            text = "The jobs run on other machines and must reach the scheduler, which listens nowhere unless told to."
            raise WrongUse("cluster-host", text, "Give --cluster-host with this machine's address in the cluster.")


@contextmanager
def connected(settings: ClusterSettings, scratch: Path) -> Iterator[Client]:
    """A client of the cluster; what was started for it ends with the block.

    Args:
        settings: which cluster.
        scratch: an existing folder that every machine of the cluster sees, for certificates.

    Raises:
        OutOfResources: ``package-missing``, ``cluster-unreachable`` or ``cluster-no-workers``.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", LOG_LEVEL)  # read at import, also by the workers
    try:
        from distributed import Client
    except ImportError as error:
        raise _missing("distributed") from error
    if settings.where.startswith(SCHEMES):
        try:
            client = Client(settings.where, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError) as error:
            text = f"No scheduler answers at {settings.where}: {error}."
            raise OutOfResources("cluster-unreachable", text, "Start it with `dask scheduler`.") from error
        with client:
            try:
                client.wait_for_workers(settings.workers, timeout=CONNECT_S)
            except TimeoutError as error:
                text = f"The scheduler at {settings.where} has fewer than {settings.workers} workers."
                raise OutOfResources("cluster-no-workers", text, "Start them with `dask worker`.") from error
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="dask-", dir=scratch) as temporary:
        start = start_local if settings.where == LOCAL else start_slurm
        with start(settings, Path(temporary)) as cluster, Client(cluster, set_as_default=False) as client:
            yield client


def start_local(settings: ClusterSettings, temporary: Path) -> Any:
    """Worker processes on this machine; one that is killed is started again.

    Each has a share of the cores, and a GPU of its own where there are any (in turn, where there are fewer than
    workers).
    """
    import torch
    from distributed import Nanny, Scheduler
    from distributed.deploy.spec import SpecCluster

    host = settings.host or LOOPBACK
    gpus = torch.cuda.device_count()
    options = {
        "nthreads": IN_HAND,
        "host": host,
        "memory_limit": 0,  # Dask would pause a worker at a share of the memory and wait for ever
        "preload": PRELOAD,
        "local_directory": str(temporary),
    }
    workers = {
        number: {
            "cls": Nanny,
            "options": {**options, "name": number, "env": worker_environment(number, settings.workers, gpus)},
        }
        for number in range(settings.workers)
    }
    scheduler = {"cls": Scheduler, "options": _scheduler_options(settings)}
    return SpecCluster(workers=workers, scheduler=scheduler, name="mtmed3d")


def worker_environment(number: int, workers: int, gpus: int) -> dict[str, str]:
    """Environment of one of several workers on a machine: its share of the cores, its GPU.

    Args:
        number: of the worker, from 0.
        workers: on this machine.
        gpus: that a process sees which is bound to none.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))}
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number % gpus].strip()
    return environment


def start_slurm(settings: ClusterSettings, temporary: Path) -> Any:
    """One worker a job, in a queue of SLURM; the queue's own settings bind it to a GPU.

    Cores, memory, queue, account and the like come from the user's Dask configuration (``jobqueue.slurm``) or
    from `ClusterSettings.slurm`.
    """
    try:
        from dask_jobqueue import SLURMCluster
        from distributed.security import Security

        security = Security.temporary()
    except ImportError as error:
        raise _missing("dask-jobqueue") from error
    chosen: dict[str, Any] = {name: int(text) if text.isdigit() else text for name, text in settings.slurm.items()}
    try:
        cluster = SLURMCluster(
            **{"processes": 1, "worker_extra_args": ["--preload", PRELOAD, "--nthreads", str(IN_HAND)], **chosen},
            scheduler_options=_scheduler_options(settings),
            security=security,
            protocol="tls://",
            shared_temp_directory=str(temporary),
        )
    except (TypeError, ValueError) as error:
        text = f"dask-jobqueue cannot make jobs of these options: {error}."
        raise WrongUse("cluster-options", text, "Give cores and memory, for example --slurm memory=16GB.") from error
    cluster.scale(jobs=settings.workers)
    return cluster


def _scheduler_options(settings: ClusterSettings) -> dict[str, Any]:
    # The HTTP server runs in any case, for the workers' health; left to itself it would listen everywhere.
    return {
        "host": settings.host or LOOPBACK,
        "port": 0,
        "dashboard": settings.dashboard is not None,
        "dashboard_address": settings.dashboard or f"{LOOPBACK}:0",
    }


def _missing(package: str) -> OutOfResources:
    text = f"A cluster needs the package {package}, which is not installed."
    return OutOfResources("package-missing", text, "Run `pip install mtmed3d[cluster]`.")
