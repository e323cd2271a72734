"""What a worker answers and when, with work that goes on until a test lets it."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from MTMed3DCore.errors import Cancelled, OutOfResources
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.worker.cancelling import Stop
from MTMed3DCore.worker.failures import as_refusal
from MTMed3DCore.worker.protocol import Channel
from MTMed3DCore.worker.session import Session

PATIENCE_S = 60


class HeldWork:
    """Work that goes on until a test lets it, deaf to any wish to stop unless it is told to listen."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.running = threading.Event()
        self.at_once = False
        self.raising: BaseException | None = None
        self.last_step: Callable[[Stop], None] = Stop.check

    def analyze(self, fields: Any, stop: Stop, progress: Any) -> dict[str, Any]:
        if self.raising is not None:
            raise self.raising
        if not self.at_once:
            self.running.set()
            assert self.go_on.wait(PATIENCE_S)
        self.last_step(stop)
        progress("write", 1.0, "Written")
        return {"findings": fields["output"]}

    def devices(self) -> dict[str, Any]:
        assert self.go_on.wait(PATIENCE_S)
        return {"devices": []}


class Spoken:
    """A session in this process: what is said to it, and what it has sent."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        self.work = HeldWork()
        self.session = Session(Channel(self.stream))
        self.session._work = self.work

    def say(self, request_id: str, command: str = "analyze", **fields: Any) -> None:
        if command == "analyze":
            fields = {"inputs": dict.fromkeys(SEQUENCES, "x"), "output": "out", **fields}
        assert self.session.answer(json.dumps({"id": request_id, "command": command, **fields}))

    def sent(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def answer(self, request_id: str | None) -> dict[str, Any]:
        """The one result or error of a request, when it comes."""
        return self.answers(request_id, 1)[0]

    def answers(self, request_id: str | None, number: int) -> list[dict[str, Any]]:
        """As many results and errors as an id was used for."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            found = [e for e in self.sent() if e["id"] == request_id and e["event"] in ("result", "error")]
            if len(found) >= number:
                assert len(found) == number
                return found
            time.sleep(0.01)
        raise AssertionError(f"no answer to {request_id}: {self.sent()}")


@pytest.fixture
def spoken() -> Iterator[Spoken]:
    spoken = Spoken()
    yield spoken
    spoken.work.go_on.set()
    spoken.session.close()


def test_work_that_cannot_be_interrupted_is_answered_within_a_second_and_ends_unheard(spoken):
    spoken.say("1")
    assert spoken.work.running.wait(PATIENCE_S)
    asked = time.monotonic()
    spoken.say("2", "cancel", target="1")
    assert spoken.answer("1")["code"] == "cancelled"
    assert time.monotonic() - asked < 1.0
    assert spoken.answer("2")["cancelled"] is True
    spoken.work.at_once = True
    spoken.say("3")  # accepted, but waits for what is left of the first
    spoken.say("4", "ping")
    assert spoken.answer("4")["busy"] == "3"
    assert not any(event["id"] == "3" for event in spoken.sent())
    spoken.work.go_on.set()
    assert spoken.answer("3")["event"] == "result"
    assert spoken.answer("1")["code"] == "cancelled"
    assert [event["event"] for event in spoken.sent() if event["id"] == "1"] == ["error"]


def test_what_is_left_of_a_cancelled_request_does_not_answer_a_later_one_of_the_same_id(spoken):
    spoken.say("1")
    assert spoken.work.running.wait(PATIENCE_S)
    spoken.say("2", "cancel", target="1")
    assert spoken.answer("1")["code"] == "cancelled"
    spoken.say("1")
    spoken.work.at_once = True
    spoken.work.go_on.set()
    assert spoken.answers("1", 2)[1]["event"] == "result"


def test_a_cancel_that_comes_when_the_result_is_being_put_in_place_is_too_late_and_says_so(spoken):
    settled, finish = threading.Event(), threading.Event()

    def settle(stop: Stop) -> None:
        stop.settle()
        settled.set()
        assert finish.wait(PATIENCE_S)

    spoken.work.last_step = settle
    spoken.work.go_on.set()
    spoken.say("1")
    assert settled.wait(PATIENCE_S)
    spoken.say("2", "cancel", target="1")
    assert spoken.answer("2")["cancelled"] is False
    finish.set()
    assert spoken.answer("1")["event"] == "result"


def test_the_id_of_an_unanswered_request_cannot_be_used_again(spoken):
    spoken.say("1")
    spoken.say("1", "ping")
    refused = spoken.answer(None)
    assert (refused["code"], "'1'" in refused["text"]) == ("id-twice", True)
    spoken.work.go_on.set()
    assert spoken.answer("1")["findings"] == "out"


def test_a_ping_is_answered_while_the_devices_are_looked_for(spoken):
    spoken.say("1", "devices")
    spoken.say("2", "ping")
    assert spoken.answer("2")["busy"] is None
    assert not any(event["id"] == "1" for event in spoken.sent())
    spoken.work.go_on.set()
    assert spoken.answer("1")["devices"] == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyError("nobody foresaw this"), "internal-error"),
        (SystemExit(1), "internal-error"),
        (MemoryError(), "out-of-memory"),
        (ModuleNotFoundError("No module named 'torch'"), "package-missing"),
        (FileNotFoundError(2, "No such file", "x"), "file-access"),
        (Cancelled(), "cancelled"),
    ],
)
def test_whatever_a_request_fails_with_is_one_error_and_the_next_request_is_answered(spoken, error, code):
    spoken.work.raising = error
    spoken.say("1")
    failed = spoken.answer("1")
    assert failed["code"] == code
    assert failed["text"]
    assert "Traceback" not in json.dumps(failed)
    spoken.work.raising, spoken.work.at_once = None, True
    spoken.say("2")
    assert spoken.answer("2")["event"] == "result"


def test_the_traceback_of_an_unforeseen_failure_goes_to_the_log(capfd):
    try:
        raise KeyError("nobody foresaw this")
    except KeyError as error:
        refused = as_refusal(error, "cpu")
    assert refused.remedy
    out, log = capfd.readouterr()
    assert "Traceback" in log
    assert Path(__file__).name in log
    assert out == ""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        OutOfResources("memory", "The memory does not suffice to analyse this study."),
        MemoryError(),
    ],
)
def test_short_memory_has_one_code_however_it_shows_and_names_the_device(error):
    refused = as_refusal(error, "cuda:1")
    assert refused.code == "out-of-memory"
    assert "cuda:1" in refused.text
    assert refused.remedy


def test_a_wish_to_stop_is_met_before_the_next_layer_of_the_thread_that_works():
    stop, ran = Stop(), []

    class Layer(torch.nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(self.number)
            if self.number == 2:
                stop.wish()
            return x

    network = torch.nn.Sequential(*(Layer(number) for number in range(5)))
    with stop.between_layers(), pytest.raises(Cancelled):
        network(torch.zeros(1))
    assert ran == [0, 1, 2]
    ran.clear()
    network(torch.zeros(1))  # the network is as usable as before
    assert ran == [0, 1, 2, 3, 4]
