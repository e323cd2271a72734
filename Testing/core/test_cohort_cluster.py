"""Cohorts on a cluster: lost workers lose nothing, and nothing listens where it was not told to."""

from __future__ import annotations

import csv
import os
import signal
import stat
import time
from collections import Counter
from pathlib import Path

import pytest

from MTMed3DCore.cohort.cluster import LOOPBACK, ClusterSettings, connected, start_slurm, worker_environment
from MTMed3DCore.cohort.folder import STATE, SUMMARY, CohortFolder
from MTMed3DCore.cohort.outcome import Outcome
from MTMed3DCore.cohort.remote import device_of, worker_numbers
from MTMed3DCore.cohort.run import run_cohort
from MTMed3DCore.cohort.settings import CohortSettings
from MTMed3DCore.cohort.studies import Request
from MTMed3DCore.errors import OutOfResources, WrongUse
from Testing.cohorts import contents, finished, make_model, start, wait_for_results, write_head


@pytest.fixture
def dask() -> None:
    """Skips where the extra is not installed."""
    for package in ("distributed", "dask_jobqueue", "cryptography"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install mtmed3d[cluster]")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"where": "cloud"}, "cluster-unknown"),
        ({"where": "local", "workers": 0}, "cluster-workers"),
        ({"where": "tcp://127.0.0.1:1", "host": "0.0.0.0"}, "cluster-options"),
        ({"where": "local", "slurm": {"queue": "gpu"}}, "cluster-options"),
        ({"where": "slurm"}, "cluster-host"),
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options, code) -> None:
    with pytest.raises(WrongUse) as caught:
        ClusterSettings(**options)
    assert caught.value.code == code


def test_each_worker_of_a_machine_has_a_gpu_of_its_own_and_its_share_of_the_cores(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    environments = [worker_environment(number, 3, gpus=2) for number in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["0", "1", "0"]
    assert {each["OMP_NUM_THREADS"] for each in environments} == {"2"}
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 1, gpus=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")  # of the devices that were left to the command
    assert [worker_environment(n, 2, gpus=2)["CUDA_VISIBLE_DEVICES"] for n in range(2)] == ["5", "7"]


def test_workers_of_a_scheduler_are_numbered_on_each_machine_and_take_the_gpu_of_their_number() -> None:
    workers = {f"tcp://{host}:{port}": {"host": host} for host in ("10.0.0.1", "10.0.0.2") for port in (3, 1, 2)}
    numbers = worker_numbers(workers)
    assert [numbers[f"tcp://10.0.0.2:{port}"] for port in (1, 2, 3)] == [0, 1, 2]
    assert Counter(numbers.values()) == {0: 2, 1: 2, 2: 2}
    assert [device_of("auto", number, 2) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("auto", 1, 1) == "auto"  # bound by CUDA_VISIBLE_DEVICES already
    assert device_of("cuda:3", 1, 4) == "cuda:3"
    assert device_of("cpu", 1, 4) == "cpu"


@pytest.mark.usefixtures("dask")
def test_a_scheduler_that_does_not_answer_is_a_refusal(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("MTMed3DCore.cohort.cluster.CONNECT_S", 1)
    with pytest.raises(OutOfResources) as caught, connected(ClusterSettings("tcp://127.0.0.1:9"), tmp_path):
        pass
    assert caught.value.code == "cluster-unreachable"


@pytest.mark.usefixtures("dask")
def test_a_study_whose_workers_die_is_recorded_and_the_others_go_on(tmp_path, monkeypatch) -> None:
    """Dask's own bookkeeping of lost workers, with a study that kills its process each time."""
    import dask.config

    from MTMed3DCore.cohort import remote

    def deadly(request: Request, *_: object) -> Outcome:
        if request.name == "deadly":
            time.sleep(1)  # the others are through by then
            os.kill(os.getpid(), signal.SIGKILL)
        return Outcome(request.name)

    monkeypatch.setattr(remote, "analyse_there", deadly)
    cohort = CohortFolder(tmp_path / "out")
    requests = [Request(tmp_path, id=name) for name in ("one", "deadly", "two")]
    cluster, settings = ClusterSettings("local", workers=1), CohortSettings(tmp_path, "")
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), cohort.claimed():
        refusals = {each.name: each.refusal for each in remote.analyse_on(cluster, requests, cohort, settings)}
    assert (refusals["one"], refusals["two"]) == (None, None)
    assert refusals["deadly"].code == "worker-lost"
    assert cohort.place("deadly").failure() == refusals["deadly"]


@pytest.mark.usefixtures("dask")
def test_a_cluster_whose_worker_is_killed_has_every_study_once_and_listens_on_loopback_only(tmp_path) -> None:
    import psutil

    model = make_model(tmp_path / "model")
    rows = ["id,case"]
    for number in range(5):
        write_head(tmp_path / "studies" / f"s{number}", number)
        rows.append(f"s{number},studies/s{number}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    out = tmp_path / "out"
    process = start(
        *(tmp_path / "list.csv", "-o", out, "--model", model, "--quiet", "--cluster", "local", "--workers", "2")
    )
    wait_for_results(process, out, 1)
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    listening = {each.laddr.ip for one in processes for each in one.net_connections() if each.status == "LISTEN"}
    workers = [one for one in processes if "spawn_main" in " ".join(one.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)
    said = process.communicate()
    assert process.returncode == 0, said
    assert listening == {LOOPBACK}
    assert len(workers) == 2
    with (out / SUMMARY).open(newline="", encoding="utf-8") as stream:
        written = [(row["id"], row["status"]) for row in csv.DictReader(stream)]
    assert written == [(f"s{number}", "done") for number in range(5)]
    assert finished(out) == {f"s{number}" for number in range(5)}
    assert {path.name for path in (out / STATE).iterdir()} <= {"run.lock", "commit.lock", "failed"}

    here = CohortFolder(tmp_path / "here")
    from MTMed3DCore.bundles import find_bundle
    from MTMed3DCore.cohort.local import analyse_here

    settings = CohortSettings(model, find_bundle(model).sha256, device="cpu")
    requests = [Request(tmp_path / "studies" / name) for name in ("s0", "s4")]
    run_cohort(requests, here, settings, analyse_here)
    assert all(contents(out / name) == contents(here.root / name) for name in ("s0", "s4"))


@pytest.mark.usefixtures("dask")
def test_slurm_s_jobs_speak_tls_to_the_address_that_was_named(tmp_path, monkeypatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, answer in (("sbatch", f'cp "$1" {tmp_path}/job.sh; echo Submitted batch job 7'), ("scancel", "true")):
        tool = tools / name
        tool.write_text(f"#!/bin/sh\n{answer}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    options = {"queue": "gpu", "cores": "4", "memory": "8GB"}
    settings = ClusterSettings("slurm", workers=1, host=LOOPBACK, slurm=options)
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    with start_slurm(settings, certificates) as cluster:
        script = cluster.job_script()
        address = cluster.scheduler_address
    assert address.startswith(f"tls://{LOOPBACK}:")
    assert address in script
    assert "#SBATCH -p gpu" in script
    assert "--tls-key" in script
    assert str(certificates) in script
    assert "--preload MTMed3DCore.cohort.preload" in script
    submitted: Path = tmp_path / "job.sh"
    assert submitted.is_file()
    assert address in submitted.read_text()
