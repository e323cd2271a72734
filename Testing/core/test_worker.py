"""The worker: real processes, from the first line to the last."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from MTMed3DCore import __version__, bundles
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.worker.session import Session
from MTMed3DLib.worker_client import DIED, WorkerClient

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of one small network: `quick` looks at a study coarsely, `slow` closely."""
    torch.manual_seed(0)
    network = build_network("mtmed3d", feature_size=12)
    root = tmp_path_factory.mktemp("models")
    for name, spacing, window in (("quick", 4.0, 64), ("slow", 1.0, 96)):
        settings = InferenceSettings(spacing_mm=spacing, window=window, grading_crop=64)
        bundles.save_bundle(root / name, network, settings, name=name, version="1", trained_on="Nothing.", card="")
    return root


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("case")
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, 40),) * 3, indexing="ij")
    head = np.sqrt(x**2 + y**2 + z**2) < 0.8
    rng = np.random.default_rng(0)
    for name in SEQUENCES:
        image = np.where(head, 100 + 10 * rng.standard_normal(head.shape), 0).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, np.diag([4, 4, 4, 1])), folder / f"{name}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz") for name in SEQUENCES}


@pytest.fixture
def client(models: Path) -> Iterator[WorkerClient]:
    variables = {"MTMED3D_MODELS": str(models), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    client = WorkerClient([sys.executable, "-m", "MTMed3DCore.worker"], variables)
    yield client
    client.kill()


def answers(client: WorkerClient, request_id: str) -> list[dict[str, Any]]:
    """Every event of a request up to its result or error."""
    events: list[dict[str, Any]] = []
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for event in client.poll():
            if event.get("id") == request_id:
                events.append(event)
        if events and events[-1]["event"] in ("result", "error"):
            return events
        time.sleep(0.01)
    raise AssertionError(f"no answer to {request_id} within {PATIENCE_S} s; the worker's log:\n{client.log}")


def wait_for_stage(client: WorkerClient, request_id: str, stage: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if any(e.get("id") == request_id and e.get("stage") == stage for e in client.poll()):
            return
        time.sleep(0.01)
    raise AssertionError(f"stage {stage} was not reached; the worker's log:\n{client.log}")


def test_a_study_is_analysed_with_progress_through_every_stage(client, case, tmp_path):
    request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="quick", study="patient 1")
    events = answers(client, request)
    stages = [event["stage"] for event in events[:-1]]
    assert list(dict.fromkeys(stages)) == ["read", "prepare", "infer", "write"]
    assert events[-1]["event"] == "result"
    assert events[-1]["findings"] == str(tmp_path / "out" / "findings.json")
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["study"]["id"] == "patient 1"


def test_the_process_and_its_network_stay_for_the_next_request_and_no_file_stays_open(client, case, tmp_path):
    loaded = answers(client, client.request("load", model="quick", device="cpu"))[-1]
    assert (loaded["model"], loaded["device"]) == ("quick", "cpu")
    pid, names, opened = client.pid, ("first", "second", "third"), set()
    for name in names:
        request = client.request("analyze", inputs=case, output=str(tmp_path / name), model="quick", device="cpu")
        assert answers(client, request)[-1]["event"] == "result"
        opened.add(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    assert client.pid == pid
    assert len(opened) == 1
    first, second, _ = (json.loads((tmp_path / n / "findings.json").read_text()) for n in names)
    assert first["volumes_ml"] == second["volumes_ml"]


def test_a_request_for_which_no_thread_could_be_started_is_refused_and_never_done(monkeypatch):
    sent: list[dict[str, Any]] = []
    session = Session(SimpleNamespace(send=sent.append))  # type: ignore[arg-type]

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short_of_memory:
        short_of_memory.setattr(threading.Thread, "start", no_thread)
        session.answer('{"id": "1", "command": "load", "model": "nobody-has-it"}')
    assert [(event["id"], event["code"]) for event in sent] == [("1", "out-of-memory")]
    session.answer('{"id": "2", "command": "load", "model": "nobody-has-it"}')
    deadline = time.monotonic() + 60
    while sent[-1]["event"] != "error" or len(sent) == 1:
        assert time.monotonic() < deadline, sent
        time.sleep(0.02)
    session.close()
    assert [(event["id"], event["code"]) for event in sent[1:] if event["event"] == "error"] == [("2", "model-unknown")]
    assert {event["id"] for event in sent[1:]} == {"2"}


def test_a_result_says_how_the_study_was_prepared(client, case, tmp_path):
    request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="quick", device="cpu")
    preparation = answers(client, request)[-1]["preparation"]
    assert preparation["brain_mask"]["source"] == "stripped"
    assert [each["sequence"] for each in preparation["registrations"]] == ["t1", "t2", "flair"]
    assert {each["verdict"] for each in preparation["registrations"]} == {"not-needed"}
    assert preparation == json.loads((tmp_path / "out" / "findings.json").read_text())["preparation"]


def test_a_mask_an_earlier_preparation_and_a_prior_result_may_be_given(client, case, tmp_path):
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[10:30, 12:28, 9:31] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.diag([4, 4, 4, 1])), tmp_path / "mask.nii.gz")
    options = {"inputs": case, "model": "quick", "device": "cpu"}
    given = {"mask": str(tmp_path / "mask.nii.gz"), "output": str(tmp_path / "masked")}
    first = answers(client, client.request("analyze", **options, **given))[-1]
    assert first["preparation"]["brain_mask"]["source"] == "given"
    written = nibabel.load(tmp_path / "masked" / "preparation" / "brain_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
    again = {
        "preparation": str(tmp_path / "masked"),
        "prior": str(tmp_path / "masked"),
        "output": str(tmp_path / "two"),
    }
    second = answers(client, client.request("analyze", **options, **again))[-1]
    assert second["preparation"]["brain_mask"] == first["preparation"]["brain_mask"]
    comparison = json.loads((tmp_path / "two" / "findings.json").read_text())["comparison"]
    assert comparison["volumes_ml"]["whole_tumour"]["prior"] == pytest.approx(
        comparison["volumes_ml"]["whole_tumour"]["current"]
    )


@pytest.mark.parametrize(
    ("field", "code"), [("mask", "file-missing"), ("preparation", "preparation-missing"), ("prior", "findings-missing")]
)
def test_what_is_given_and_not_there_is_refused_with_its_own_code(client, case, tmp_path, field, code):
    given = {field: str(tmp_path / "nowhere.nii.gz")}
    request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="quick", device="cpu", **given)
    assert answers(client, request)[-1]["code"] == code
    assert not (tmp_path / "out").exists()


def test_weights_that_change_after_they_were_loaded_are_noticed_by_the_next_request(client, models, tmp_path):
    model = shutil.copytree(models / "quick", tmp_path / "model")
    weights = model / "models" / "model.safetensors"
    content = weights.read_bytes()

    def load() -> dict[str, Any]:
        return answers(client, client.request("load", model=str(model), device="cpu"))[-1]

    assert load()["event"] == "result"
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for _ in range(2):
        refused = load()
        assert (refused["code"], "model.safetensors" in refused["text"]) == ("bundle-tampered", True)
    weights.write_bytes(content)
    assert load()["event"] == "result"


def test_a_cancelled_analysis_ends_within_a_second_and_the_process_goes_on(client, case, tmp_path):
    request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="slow", device="cpu")
    wait_for_stage(client, request, "infer")
    pid = client.pid
    asked = time.monotonic()
    client.cancel(request)
    last = answers(client, request)[-1]
    assert time.monotonic() - asked < 1.0
    assert last["code"] == "cancelled"
    assert not (tmp_path / "out").exists()
    again = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="quick", device="cpu")
    assert answers(client, again)[-1]["event"] == "result"
    assert client.pid == pid


def test_a_result_is_replaced_only_when_asked_and_only_while_nobody_edited_it(client, case, tmp_path):
    def analyze(**fields: bool) -> dict[str, Any]:
        request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="quick", **fields)
        return answers(client, request)[-1]

    assert analyze()["event"] == "result"
    assert analyze()["code"] == "output-not-empty"
    assert analyze(overwrite=True)["event"] == "result"
    (tmp_path / "out" / "report.html").write_text("edited")
    assert analyze(overwrite=True)["code"] == "output-edited"
    assert (tmp_path / "out" / "report.html").read_text() == "edited"


def test_cancelling_what_does_not_run_says_so(client):
    assert answers(client, client.cancel("77"))[-1]["cancelled"] is False


def test_while_one_analysis_runs_a_second_is_refused_and_a_ping_is_answered(client, case, tmp_path):
    request = client.request("analyze", inputs=case, output=str(tmp_path / "a"), model="slow", device="cpu")
    wait_for_stage(client, request, "read")
    second = client.request("analyze", inputs=case, output=str(tmp_path / "b"), model="quick")
    assert answers(client, second)[-1]["code"] == "busy"
    assert answers(client, client.request("ping"))[-1]["busy"] == request
    client.cancel(request)


def test_models_and_devices_are_listed(client):
    models = answers(client, client.request("models"))[-1]["models"]
    assert {"quick", "slow"} <= {model["name"] for model in models}
    devices = answers(client, client.request("devices"))[-1]["devices"]
    assert [device["device"] for device in devices][:2] == ["auto", "cpu"]


def test_a_refused_study_is_one_error_with_its_remedy_and_the_process_goes_on(client, case, tmp_path):
    inputs = {**case, "flair": case["t2"]}
    events = answers(client, client.request("analyze", inputs=inputs, output=str(tmp_path / "out"), model="quick"))
    assert [event["event"] for event in events].count("error") == 1
    assert events[-1]["code"] == "sequence-twice"
    assert events[-1]["remedy"]
    assert answers(client, client.request("ping"))[-1]["event"] == "result"


def test_an_unknown_model_is_an_error_of_its_own(client, case, tmp_path):
    request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="no-such-model")
    assert answers(client, request)[-1]["code"] == "model-unknown"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_worker_is_reported_once_and_replaced_by_the_next_request(client, case, tmp_path):
    request = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="slow", device="cpu")
    wait_for_stage(client, request, "infer")
    pid = client.pid
    os.kill(pid, signal.SIGKILL)
    last = answers(client, request)[-1]
    assert (last["code"], "signal 9" in last["text"]) == (DIED, True)
    assert not client.running
    again = client.request("analyze", inputs=case, output=str(tmp_path / "out"), model="quick", device="cpu")
    assert answers(client, again)[-1]["event"] == "result"
    assert client.pid not in (None, pid)


class Worker:
    """A worker spoken to line by line."""

    def __init__(self, models: Path) -> None:
        variables = {**os.environ, "MTMED3D_MODELS": str(models), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "MTMed3DCore.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=variables,
        )

    def say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def worker(models: Path) -> Iterator[Worker]:
    worker = Worker(models)
    yield worker
    worker.process.kill()
    worker.process.wait()
    worker.process.stdout.close()


def test_the_first_line_says_that_it_is_ready_and_which_version(worker):
    assert worker.hear() == {"event": "ready", "version": __version__, "protocol": 1}


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        ("{", "not-json", None),
        ("[1, 2]", "not-json", None),
        ('{"command": "ping"}', "id-missing", None),
        ('{"id": 7, "command": "ping"}', "id-missing", None),
        ('{"id": "7", "command": "dance"}', "command-unknown", "7"),
        ('{"id": "7", "command": "analyze", "output": "x"}', "field-missing", "7"),
        ('{"id": "7", "command": "analyze", "inputs": {"t1": "x"}, "output": "x"}', "field-invalid", "7"),
        ('{"id": "7", "command": "cancel"}', "field-missing", "7"),
        ('{"id": "7", "command": "load", "model": 3}', "field-invalid", "7"),
        ('{"id": "7", "command": "load", "overwrite": "yes"}', "field-invalid", "7"),
        ("[" * 100_000, "not-json", None),
    ],
)
def test_a_line_that_is_no_request_is_refused_and_the_next_one_answered(worker, line, code, request_id):
    worker.hear()
    worker.say(line)
    refused = worker.hear()
    assert (refused["event"], refused["code"], refused["id"]) == ("error", code, request_id)
    worker.say('{"id": "8", "command": "ping"}')
    assert worker.hear() == {"id": "8", "event": "result", "busy": None}


def test_it_ends_when_its_input_closes_even_while_an_analysis_runs(worker, case, tmp_path):
    worker.hear()
    request = {"id": "1", "command": "analyze", "inputs": case, "output": str(tmp_path / "out"), "model": "slow"}
    worker.say(json.dumps(request))
    while worker.hear().get("stage") != "infer":
        pass
    worker.process.stdin.close()
    assert worker.process.wait(PATIENCE_S) == 0
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".mtmed3d-partial-*"))


def test_shutdown_is_answered_and_then_obeyed(worker):
    worker.hear()
    worker.say('{"id": "1", "command": "shutdown"}')
    assert worker.hear()["event"] == "result"
    assert worker.process.wait(PATIENCE_S) == 0


def test_stray_prints_do_not_reach_the_events():
    code = """
import os, sys
from MTMed3DCore.worker.protocol import Channel, private_stdout
channel = Channel(private_stdout())
print("from Python"); os.write(1, b"from C\\n")
channel.send({"event": "ready"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == '{"event": "ready"}\n'
    assert done.stderr.splitlines().count("from Python") == 1
    assert "from C" in done.stderr
