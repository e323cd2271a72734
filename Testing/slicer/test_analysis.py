"""The state machine between the panel and the worker, and the packages that it needs; no Qt, no scene."""

# ruff: noqa: N802 (the names are those of MRML and of PyTorchUtils)

from __future__ import annotations

import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from panel_driver import ObedientWorker

from MTMed3DLib import packages
from MTMed3DLib.analysis import Analysis, State, study_name
from MTMed3DLib.sample_data import SampleStudy

MODULE_FILE = Path(__file__).resolve().parent.parent.parent / "MTMed3DSlicer" / "MTMed3D.py"


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


class Shown:
    """What the analysis was told to show."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012

    def __init__(self, _scene: Any, study_id: str) -> None:
        self.study_id = study_id

    def show(self, folder: Path, t1ce: Any, inputs: Any) -> list[str]:
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
    def write(given: Any, folder: Path) -> dict[str, Path]:
        return {name: folder / f"{name}.nrrd" for name in given}

    Shown.calls = []
    made = Analysis(Scene(list(nodes.values())), worker, write, Shown, lambda: clock[0])
    yield made
    made.close()


def test_a_result_is_shown_with_every_volume_that_is_still_there(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    analysis.start(nodes)
    analysis.scene.nodes.remove(nodes["flair"])
    worker._send(event="result", findings="/somewhere/findings.json")
    assert analysis.poll()
    assert Shown.calls == [("t1ce", Path("/somewhere"), nodes["t1ce"], ["t1", "t1ce", "t2"])]
    assert analysis.notices == ["1 boxes of the reader were kept."]
    assert (analysis.state, analysis.failure) == (State.IDLE, None)


def test_a_second_start_is_refused_while_one_runs(analysis: Analysis, nodes: dict[str, Node]) -> None:
    analysis.start(nodes)
    with pytest.raises(RuntimeError, match="cancel it first"):
        analysis.start(nodes)


def test_answers_to_other_requests_change_nothing(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    analysis.start(nodes)
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
    analysis.start(nodes)
    assert analysis.failure is not None
    assert analysis.failure.code == "worker-missing"
    assert "no such program" in str(analysis.failure)
    assert analysis.state is State.IDLE


def test_volumes_that_cannot_be_written_are_a_failure_in_words(
    nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    def refuse(*_: Any) -> dict[str, Path]:
        raise OSError(28, "No space left on device")

    analysis = Analysis(Scene(list(nodes.values())), worker, refuse, Shown)
    analysis.start(nodes)
    assert analysis.failure is not None
    assert "No space left on device" in str(analysis.failure)
    assert worker.analyses() == []


def test_a_result_that_cannot_be_shown_is_a_failure_and_not_an_exception(
    nodes: dict[str, Node], worker: ObedientWorker
) -> None:
    class Broken(Shown):
        def show(self, *_: Any) -> list[str]:
            raise ValueError("findings.json is no object")

    analysis = Analysis(Scene(list(nodes.values())), worker, lambda given, folder: {}, Broken)
    analysis.start(nodes)
    worker._send(event="result", findings="/somewhere/findings.json")
    analysis.poll()
    assert analysis.failure is not None
    assert analysis.failure.code == "result-unreadable"
    assert "findings.json is no object" in str(analysis.failure)


def test_the_worker_is_given_time_to_stop_before_it_is_ended(
    analysis: Analysis, nodes: dict[str, Node], worker: ObedientWorker, clock: list[float]
) -> None:
    analysis.start(nodes)
    analysis.cancel()
    clock[0] = 0.5
    analysis.poll()
    assert (analysis.state, worker.stopped) == (State.CANCELLING, 0)
    clock[0] = 0.9
    analysis.poll()
    assert (analysis.state, worker.stopped) == (State.IDLE, 1)


def test_the_name_of_a_study_is_given_once_and_to_one_volume() -> None:
    first, second = Node("T1 post"), Node("T1 post")
    scene = Scene([first, second])
    assert study_name(scene, first) == "T1 post"
    assert study_name(scene, second) == "T1 post (2)"
    first.name = "renamed"
    assert study_name(scene, first) == "T1 post"


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
