"""The state machine between the panel and the worker, and the packages that it needs; no Qt, no scene."""

# ruff: noqa: N802 (the names are those of MRML and of PyTorchUtils)

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from panel_driver import WAIT_S, ObedientWorker

from MTMed3DLib import packages
from MTMed3DLib.analysis import HANDED_OVER, Analysis, State
from MTMed3DLib.attributes import MASK
from MTMed3DLib.naming import study_name
from MTMed3DLib.sample_data import SampleStudy

MODULE_FILE = Path(__file__).resolve().parent.parent.parent / "MTMed3DSlicer" / "MTMed3D.py"


LEFT = ["t1", "t1ce", "t2"]


class Node:
    """As much of a volume node as the analysis asks for."""

    def __init__(self, name: str) -> None:
        self.name, self.attributes = name, {}

    def GetID(self) -> str:
        return f"id-{self.name}"

    def GetName(self) -> str:
        return self.name

    def GetAttribute(self, key: str) -> str | None:
        return self.attributes.get(key)

    def SetAttribute(self, key: str, value: str) -> None:
        self.attributes[key] = value


class Scene:
    """As much of a scene as the analysis asks for."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def GetNodeByID(self, node_id: str) -> Node | None:
        return next((node for node in self.nodes if node.GetID() == node_id), None)

    def IsNodePresent(self, node: Node) -> bool:
        return node in self.nodes

    def GetNumberOfNodesByClass(self, _name: str) -> int:
        return len(self.nodes)

    def GetNthNodeByClass(self, index: int, _name: str) -> Node:
        return self.nodes[index]


class Copies:
    """Volumes that are handed over in no time."""

    def __init__(self, given: Any, mask: Any = None) -> None:
        self.given = [*given, *([] if mask is None else [MASK])]

    def write(self, folder: Path, report: Any) -> dict[str, Path]:
        report("read", 0.0, "Handing over")
        return {name: folder / f"{name}.nrrd" for name in self.given}


class SlowCopies(Copies):
    """Volumes whose first file stands when `written` says so; then the next step is reported."""

    def __init__(self, given: Any, began: threading.Event, written: threading.Event) -> None:
        super().__init__(given)
        self.began, self.written = began, written

    def write(self, folder: Path, report: Any) -> dict[str, Path]:
        report("read", 0.5, "Handing over T1")
        (folder / "t1.nrrd").touch()
        self.began.set()
        assert self.written.wait(WAIT_S)
        report("read", 1.0, "Handing over T1ce")
        return super().write(folder, report)


def until(done: Callable[[], bool]) -> None:
    """Wait, since the volumes are handed over on another thread."""
    end = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.002)


def start(analysis: Analysis, nodes: dict[str, Node]) -> None:
    """Start, and wait until the worker has been asked."""
    analysis.start(nodes)
    until(lambda: (analysis.poll() and bool(analysis.worker.analyses())) or analysis.failure is not None)


class Shown:
    """What the analysis was told to show."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def __init__(self, _scene: Any, study_id: str) -> None:
        self.study_id = study_id

    def show(self, folder: Path, t1ce: Any, inputs: Any, score_threshold: Any) -> list[str]:
        Shown.calls.append((self.study_id, folder, t1ce, sorted(inputs)))
        return ["1 boxes of the reader were kept."]


@pytest.fixture
def nodes() -> dict[str, Node]:
    return {name: Node(name) for name in ("t1", "t1ce", "t2", "flair")}


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def worker() -> ObedientWorker:
    return ObedientWorker()


@pytest.fixture
def analysis(nodes: dict[str, Node], worker: ObedientWorker, clock: list[float]) -> Iterator[Analysis]:
    Shown.calls = []
    made = Analysis(Scene(list(nodes.values())), worker, Copies, Shown, lambda: clock[0])
    yield made
    made.close()


def test_a_result_is_shown_with_every_volume_that_is_still_there(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    start(analysis, nodes)
    analysis.scene.nodes.remove(nodes["flair"])
    worker._send(event="result", findings="/somewhere/findings.json")
    assert analysis.poll()
    assert Shown.calls == [(study_name(analysis.scene, nodes["t1ce"]), Path("/somewhere"), nodes["t1ce"], LEFT)]
    assert analysis.notices == ["1 boxes of the reader were kept."]
    assert (analysis.state, analysis.failure) == (State.IDLE, None)


def test_a_second_start_is_refused_while_one_runs(analysis: Analysis, nodes: dict[str, Node]) -> None:
    analysis.start(nodes)
    with pytest.raises(RuntimeError, match="cancel it first"):
        analysis.start(nodes)


def test_answers_to_other_requests_change_nothing(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    start(analysis, nodes)
    worker._events.append({"id": "999", "event": "result", "findings": "x"})
    worker._events.append({"event": "ready"})
    assert not analysis.poll()
    assert analysis.state is State.RUNNING


def test_a_worker_that_cannot_be_started_is_a_failure_with_a_remedy(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise FileNotFoundError("no such program")

    monkeypatch.setattr(worker, "request", refuse)
    start(analysis, nodes)
    assert analysis.failure is not None
    assert analysis.failure.code == "worker-missing"
    assert "no such program" in str(analysis.failure)
    assert analysis.state is State.IDLE


def test_volumes_that_cannot_be_written_are_a_failure_in_words(nodes: dict[str, Node], worker: ObedientWorker) -> None:
    class Refused(Copies):
        def write(self, folder: Path, report: Any) -> dict[str, Path]:
            raise OSError(28, "No space left on device")

    analysis = Analysis(Scene(list(nodes.values())), worker, Refused, Shown)
    start(analysis, nodes)
    assert analysis.failure is not None
    assert "No space left on device" in str(analysis.failure)
    assert worker.analyses() == []


def test_a_brain_mask_goes_to_the_worker_beside_the_four_sequences(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    analysis.start(nodes, mask=Node("mask"))
    until(lambda: analysis.poll() and bool(worker.analyses()))
    (request,) = worker.analyses()
    assert sorted(request["inputs"]) == ["flair", "t1", "t1ce", "t2"]
    assert Path(request["mask"]).name == f"{MASK}.nrrd"


def test_a_result_that_cannot_be_shown_is_a_failure_and_not_an_exception(
    nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    class Broken(Shown):
        def show(self, *_: Any) -> list[str]:
            raise ValueError("findings.json is no object")

    analysis = Analysis(Scene(list(nodes.values())), worker, Copies, Broken)
    start(analysis, nodes)
    worker._send(event="result", findings="/somewhere/findings.json")
    analysis.poll()
    assert analysis.failure is not None
    assert analysis.failure.code == "result-unreadable"
    assert "findings.json is no object" in str(analysis.failure)


def test_the_worker_is_given_time_to_stop_before_it_is_ended(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker, clock: list[float]
) -> None:
    start(analysis, nodes)
    analysis.cancel()
    clock[0] = 0.5
    analysis.poll()
    assert (analysis.state, worker.stopped) == (State.CANCELLING, 0)
    clock[0] = 0.9
    analysis.poll()
    assert (analysis.state, worker.stopped) == (State.IDLE, 1)


class TestHandingOver:
    @pytest.fixture
    def slow(
        self, nodes: dict[str, Node], worker: ObedientWorker, clock: list[float]
    ) -> Iterator[tuple[Analysis, threading.Event, threading.Event]]:
        began, written = threading.Event(), threading.Event()

        def take(given: Any, _mask: Any) -> SlowCopies:
            return SlowCopies(given, began, written)

        made = Analysis(Scene(list(nodes.values())), worker, take, Shown, lambda: clock[0])
        yield made, began, written
        written.set()
        made.close()

    def test_it_is_told_step_by_step_and_nothing_is_asked_before_its_end(
        self, slow: Any, nodes: dict[str, Node], worker: ObedientWorker
    ) -> None:
        analysis, began, written = slow
        analysis.start(nodes)
        assert began.wait(WAIT_S)
        analysis.poll()
        assert (analysis.state, analysis.text, worker.analyses()) == (State.RUNNING, "Handing over T1", [])
        assert analysis.fraction == pytest.approx(0.5 * HANDED_OVER)
        written.set()
        until(lambda: analysis.poll() and bool(worker.analyses()))
        assert analysis.fraction == pytest.approx(HANDED_OVER)

    def test_a_cancel_stops_it_before_the_next_volume_and_removes_its_files(
        self, slow: Any, nodes: dict[str, Node], worker: ObedientWorker
    ) -> None:
        analysis, began, written = slow
        analysis.start(nodes)
        assert began.wait(WAIT_S)
        folder = analysis._run.folder
        analysis.cancel()
        assert analysis.state is State.CANCELLING
        written.set()
        until(lambda: analysis.poll() and not analysis.busy)
        assert (analysis.failure.code, worker.analyses(), folder.exists()) == ("cancelled", [], False)

    def test_a_disk_that_hangs_is_not_waited_for_and_its_files_go_when_it_comes_back(
        self, slow: Any, nodes: dict[str, Node], worker: ObedientWorker, clock: list[float]
    ) -> None:
        analysis, began, written = slow
        analysis.start(nodes)
        assert began.wait(WAIT_S)
        folder = analysis._run.folder
        analysis.cancel()
        clock[0] = 0.9
        analysis.poll()
        assert (analysis.state, worker.stopped, folder.exists()) == (State.IDLE, 0, True)
        written.set()
        until(lambda: not folder.exists())


def test_the_name_of_a_study_tells_no_volume_s_name_and_is_given_once() -> None:
    first, second = Node("DOE_JANE post"), Node("T1 post")
    scene = Scene([first, second])
    at = datetime(2025, 11, 21, 9, 5, 7)
    assert study_name(scene, first, lambda: at) == "case-20251121-090507"
    assert study_name(scene, second, lambda: at) == "case-20251121-090507-2"
    assert study_name(scene, first, lambda: at + timedelta(days=1)) == "case-20251121-090507"


class TestPackages:
    def test_the_core_is_found_in_a_checkout_and_beside_an_installed_module(self, tmp_path: Path) -> None:
        assert packages.core_folder(MODULE_FILE) == MODULE_FILE.parent.parent
        (tmp_path / "MTMed3DCore").mkdir()
        (tmp_path / "MTMed3DCore" / "__init__.py").touch()
        assert packages.core_folder(tmp_path / "MTMed3D.py") == tmp_path

    def test_a_module_without_the_core_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="install the extension again"):
            packages.core_folder(tmp_path / "a" / "MTMed3D.py")

    def test_another_python_needs_no_packages_here_and_none_of_our_paths(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv(packages.OTHER_PYTHON, "/usr/bin/python3")
        assert packages.missing() == []
        assert packages.worker_environment(tmp_path) == {"PYTHONPATH": str(tmp_path), "PYTHONHOME": None}

    def test_slicer_s_own_python_keeps_its_paths(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv(packages.OTHER_PYTHON, raising=False)
        monkeypatch.setenv("PYTHONPATH", "elsewhere")
        variables = packages.worker_environment(tmp_path)
        assert variables["PYTHONPATH"] is not None
        assert variables["PYTHONPATH"].startswith(str(tmp_path))
        assert variables["PYTHONPATH"].endswith("elsewhere")

    def test_without_the_pytorch_extension_the_remedy_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(packages.OTHER_PYTHON, raising=False)
        monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _name: None)
        monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
        with pytest.raises(packages.PackagesMissing, match="Extensions Manager"):
            packages.ensure("requirements.txt")

    def test_a_declined_pytorch_is_no_success(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}

        class Logic:
            def installTorch(self, **options: Any) -> None:
                asked.update(options)

        monkeypatch.delenv(packages.OTHER_PYTHON, raising=False)
        monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _name: None)
        monkeypatch.setitem(sys.modules, "PyTorchUtils", types.SimpleNamespace(PyTorchUtilsLogic=Logic))
        with pytest.raises(packages.PackagesMissing, match="was not installed"):
            packages.ensure("requirements.txt")
        assert asked == {"askConfirmation": True, "torchVersionRequirement": packages.TORCH}


class TestSampleStudy:
    def finished(self, script: str) -> SampleStudy:
        sample = SampleStudy([sys.executable], script=script)
        end = time.monotonic() + 30
        while not sample.finished:
            assert time.monotonic() < end
            time.sleep(0.01)
        return sample

    def test_its_four_files_are_found_and_removed_with_it(self) -> None:
        script = (
            "import sys, pathlib; f = pathlib.Path(sys.argv[2]); f.mkdir()\n"
            "for n in ('t1', 't1ce', 't2', 'flair'): (f / (n + '.nii.gz')).touch()"
        )
        sample = self.finished(script)
        assert {name: path.name for name, path in sample.files().items()} == {
            name: f"{name}.nii.gz" for name in ("t1", "t1ce", "t2", "flair")
        }
        sample.close()
        assert not sample.folder.exists()

    def test_a_failure_ends_with_the_last_message_of_the_process(self) -> None:
        sample = self.finished("raise SystemExit('no torch here')")
        with pytest.raises(RuntimeError, match="no torch here"):
            sample.files()
        sample.close()

    def test_closing_ends_a_process_that_still_runs(self) -> None:
        sample = SampleStudy([sys.executable], script="import time; time.sleep(60)")
        sample.close()
        assert sample.finished
