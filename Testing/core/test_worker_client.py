"""The client: children that answer, flood, hang, die and are killed, each a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from MTMed3DLib.worker_client import DIED, LOG_LINES, WorkerClient, child_environment

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
SAY = """
import json, os, sys, time
def say(request, **event):
    print(json.dumps({"id": request["id"], "event": "result", "pid": os.getpid(), **event}), flush=True)
"""
ANSWER = SAY + "for line in sys.stdin: say(json.loads(line))"
IGNORE = SAY + "for line in sys.stdin: pass"
ANSWER_AND_DIE = SAY + "say(json.loads(sys.stdin.readline())); os._exit(4)"
FLOOD_AND_ANSWER = (
    SAY + "for line in sys.stdin: sys.stderr.write(('noise ' * 20 + chr(10)) * 20000); say(json.loads(line))"
)
FLOOD_AND_DIE = "import sys\nfor n in range(200000): print('noise', n, file=sys.stderr)\nsys.exit(3)"
ONE_ENDLESS_LINE = SAY + "for line in sys.stdin: sys.stderr.write('x' * 10_000_000); say(json.loads(line))"
CHATTER = (
    SAY + "print('no event'); print('[1, 2]'); sys.stdout.flush()\n" + "for line in sys.stdin: say(json.loads(line))"
)
DEAF = SAY + 'print(\'{"event": "ready"}\', flush=True); time.sleep(600)'
SILENT = "import os, time; os.close(1); time.sleep(600)"
posix = pytest.mark.skipif(os.name != "posix", reason="sends signals and looks for processes as POSIX does")


@pytest.fixture
def run() -> Iterator[Callable[[str], WorkerClient]]:
    """A client of a program that is given as its code; every child is ended after the test."""
    clients: list[WorkerClient] = []

    def make(code: str) -> WorkerClient:
        clients.append(WorkerClient([sys.executable, "-c", code]))
        return clients[-1]

    yield make
    for client in clients:
        client.kill()


def wait_until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"did not come true within {PATIENCE_S} s")


def events(client: WorkerClient, *request_ids: str) -> list[dict[str, Any]]:
    """Everything up to the answers of some requests."""
    seen: list[dict[str, Any]] = []

    def answered() -> bool:
        seen.extend(client.poll())
        return set(request_ids) <= {event.get("id") for event in seen if event["event"] in ("result", "error")}

    wait_until(answered)
    return seen


def alive(pid: int) -> bool:
    """Whether a process is there; a zombie is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_process_starts_with_the_first_request_and_serves_the_next(run):
    client = run(ANSWER)
    assert not client.running
    first, second = client.request("ping"), client.request("ping")
    assert first != second
    answers = events(client, first, second)
    assert [event["id"] for event in answers] == [first, second]
    assert {event["pid"] for event in answers} == {client.pid}


def test_the_log_holds_requests_answers_and_what_else_was_said(run):
    client = run(CHATTER)
    events(client, client.request("ping", note="tumour"))
    log = client.log.splitlines()
    assert sum(line.startswith("-> ") and '"note": "tumour"' in line for line in log) == 1
    assert sum(line.startswith("<- ") and '"result"' in line for line in log) == 1
    assert {"no event", "[1, 2]"} <= set(log)


@pytest.mark.parametrize("code", [FLOOD_AND_ANSWER, ONE_ENDLESS_LINE], ids=["many lines", "one endless line"])
def test_a_child_that_floods_its_error_output_still_answers_and_the_log_stays_small(run, code):
    client = run(code)
    for _ in range(2):
        assert events(client, client.request("ping"))[-1]["event"] == "result"
    wait_until(lambda: any(not line.startswith(("-> ", "<- ")) for line in client.log.splitlines()))
    assert len(client.log.splitlines()) <= LOG_LINES
    assert len(client.log) < 2 * LOG_LINES * 2000


def test_a_child_that_floods_and_ends_is_reported_with_its_exit_code(run):
    client = run(FLOOD_AND_DIE)
    last = events(client, client.request("ping"))[-1]
    assert last["code"] == DIED
    assert "exit code 3; noise 199999" in last["text"]


@posix
def test_every_unanswered_request_of_a_killed_child_gets_one_error_and_the_next_request_a_new_child(run):
    client = run(IGNORE)
    first, second = client.request("analyze"), client.request("ping")
    old = client.pid
    os.kill(old, signal.SIGKILL)
    reported = events(client, first, second)
    assert [(event["id"], event["code"]) for event in reported] == [(first, DIED), (second, DIED)]
    assert all("signal 9" in event["text"] and event["remedy"] for event in reported)
    assert client.poll() == []
    assert not alive(old)
    client.request("ping")
    assert client.pid not in (None, old)


@posix
def test_a_request_right_after_a_death_that_nobody_noticed_does_not_hide_it(run):
    client = run(IGNORE)
    lost = client.request("analyze")
    os.kill(client.pid, signal.SIGKILL)
    wait_until(lambda: not client.running)
    client.request("ping")
    assert [(event["id"], event["code"]) for event in client.poll()] == [(lost, DIED)]
    assert client.running


@pytest.mark.parametrize("notice", [True, False], ids=["polled", "asked again"])
def test_an_answer_just_before_a_death_is_not_lost(run, notice):
    client = run(ANSWER_AND_DIE)
    first = client.request("ping")
    wait_until(lambda: not client.running)
    early = events(client, first) if notice else []
    second = client.request("ping")
    answers = early + events(client, second)
    assert [(event["id"], event["event"]) for event in answers] == [(first, "result"), (second, "result")]
    wait_until(lambda: not client.running)
    assert client.poll() == []


@posix
def test_a_child_that_closes_its_output_is_ended_and_reported(run):
    client = run(SILENT)
    request = client.request("ping")
    pid = client.pid
    assert events(client, request)[-1]["code"] == DIED
    assert not alive(pid)


@posix
def test_stopping_collects_the_child_and_forgets_its_requests(run):
    client = run(IGNORE)
    client.request("analyze")
    pid = client.pid
    client.stop(PATIENCE_S)
    assert not client.running
    assert not alive(pid)
    assert client.poll() == []


@posix
def test_a_child_that_ignores_the_end_of_its_input_is_ended_by_force(run):
    client = run(DEAF)
    client.request("analyze")
    pid = client.pid
    wait_until(client.poll)
    client.stop(0.1)
    assert not alive(pid)


def test_a_stopped_client_serves_again(run):
    client = run(ANSWER)
    events(client, client.request("ping"))
    client.kill()
    client.stop()
    request = client.request("ping")
    assert [event["id"] for event in events(client, request)] == [request]


def test_no_thread_is_left_after_a_child_has_ended(run):
    before = set(threading.enumerate())
    client = run(ANSWER)
    events(client, client.request("ping"))
    client.stop()
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_program_that_is_not_there_is_an_error_of_the_system(tmp_path):
    client = WorkerClient([str(tmp_path / "no-such-python"), "-m", "MTMed3DCore.worker"])
    with pytest.raises(OSError, match="no-such-python"):
        client.request("ping")
    assert not client.running
    assert client.poll() == []


@posix
def test_the_real_worker_ends_when_the_process_that_started_it_is_killed():
    code = """
import os, signal, time
from MTMed3DLib.worker_client import WorkerClient
client = WorkerClient()
client.request("ping")
while not any(event["event"] == "result" for event in client.poll()):
    time.sleep(0.01)
print(client.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "MTMed3DSlicer")))
    variables = {**os.environ, "PYTHONPATH": path, "MTMED3D_WORKER_PYTHON": sys.executable}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables, text=True
    )
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not runs(int(done.stdout)))


def runs(pid: int) -> bool:
    """Whether a process that is not our child works; a zombie, which its new parent has yet to collect, does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_another_interpreter_is_not_misled_by_the_variables_of_this_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONHOME", "/here")
    monkeypatch.setenv("PYTHONPATH", "/here/lib")
    monkeypatch.setenv("MTMED3D_TEST", "kept")
    other = child_environment(str(tmp_path / "python"), {})
    assert "PYTHONHOME" not in other
    assert "PYTHONPATH" not in other
    assert other["MTMED3D_TEST"] == "kept"
    own = child_environment(sys.executable, {})
    assert (own["PYTHONHOME"], own["PYTHONPATH"]) == ("/here", "/here/lib")


def test_named_variables_are_set_and_taken_away_for_any_interpreter(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", "/here/lib")
    changes = {"PYTHONPATH": "/there", "PATH": None}
    for program in (sys.executable, str(tmp_path / "python")):
        changed = child_environment(program, changes)
        assert changed["PYTHONPATH"] == "/there"
        assert "PATH" not in changed


def test_the_client_needs_the_standard_library_alone():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import MTMed3DLib.worker_client
import json; print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    command = [sys.executable, "-c", code, str(ROOT / "MTMed3DSlicer")]
    loaded = set(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert loaded - set(sys.stdlib_module_names) == {"MTMed3DLib"}
