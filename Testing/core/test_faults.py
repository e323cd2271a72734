"""What comes of faults in the middle of a run: a complete result or none, a reason, and a next run that works.

The quick rows of `python -m Testing.faults.table`, which lets every fault happen.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from MTMed3DCore.errors import Cancelled, WrongUse
from MTMed3DCore.exports.atomic import edited_files, publishing
from MTMed3DCore.exports.workplace import PARTIAL
from MTMed3DCore.process import open_standard_streams
from MTMed3DCore.worker.failures import foreseen
from Testing.faults.matrix import FAULTS, Fault, meet
from Testing.faults.runs import Site, sites

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, signals and locks of POSIX")
ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "SIGKILL as the stage write begins",
    "SIGTERM at 'Writing the report'",
    "FLAIR vanishes between listing and reading",
    "another run writes into the same new folder",
    "standard error is a full pipe that nobody reads",
    "standard error is closed",
)


@pytest.fixture(scope="module")
def make() -> Iterator[Callable[[], Site]]:
    with sites() as make:
        yield make


@pytest.mark.parametrize("fault", [each for each in FAULTS if each.name in QUICK], ids=lambda fault: fault.name)
def test_a_fault_leaves_a_complete_result_or_none_and_the_next_run_works(
    fault: Fault, make: Callable[[], Site]
) -> None:
    assert meet(fault, make()).wrong(fault) == []


def test_the_quick_faults_are_faults_of_the_table() -> None:
    assert set(QUICK) <= {fault.name for fault in FAULTS}


def killed_while_publishing(folder: Path, version: str, renames: int) -> None:
    """Write three files in a process of its own, which ends without notice after some renames."""
    pid = os.fork()
    if pid == 0:
        rename, left = Path.rename, iter(range(renames))

        def counting(self: Path, target: Path) -> Path:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(self, target)

        Path.rename = counting  # type: ignore[method-assign]
        try:
            publish(folder, version)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def publish(folder: Path, version: str, *names: str, overwrite: bool = True) -> None:
    with publishing(folder, overwrite=overwrite, last="last") as partial:
        (partial / "boxes").mkdir()
        for name in names or ("a", "boxes/b", "last"):
            (partial / name).write_text(version)


def contents(folder: Path) -> dict[str, str]:
    """Everything but the manifest."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in files.items() if name != ".mtmed3d.json"}


EARLIER = dict.fromkeys(("a", "boxes/b", "last"), "earlier")


@pytest.mark.parametrize("renames", range(8))
def test_a_result_whose_replacement_was_killed_is_put_back_by_the_next_run_whatever_becomes_of_that(
    renames: int, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    publish(folder, "earlier")
    killed_while_publishing(folder, "killed", renames)
    with pytest.raises(Cancelled), publishing(folder, overwrite=True, last="last"):
        raise Cancelled
    assert contents(folder) == EARLIER
    assert edited_files(folder) == []
    publish(folder, "next")
    assert contents(folder) == dict.fromkeys(EARLIER, "next")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("renames", range(4))
def test_a_first_result_in_an_empty_folder_that_was_killed_half_way_is_no_obstacle(
    renames: int, tmp_path: Path
) -> None:
    killed_while_publishing(tmp_path, "killed", renames)
    publish(tmp_path, "next", overwrite=False)
    assert contents(tmp_path) == dict.fromkeys(EARLIER, "next")


def test_a_file_that_a_person_put_where_an_earlier_one_stood_is_never_replaced_by_it(tmp_path: Path) -> None:
    publish(tmp_path, "earlier")
    killed_while_publishing(tmp_path, "killed", 5)
    (tmp_path / "last").write_text("a person's")
    with pytest.raises(WrongUse) as refused:
        publish(tmp_path, "next")
    assert refused.value.code == "output-edited"
    assert (tmp_path / "last").read_text() == "a person's"
    assert "earlier" in {path.read_text() for path in tmp_path.glob(f"{PARTIAL}*/replaced/last")}


def test_what_a_killed_first_write_left_beside_the_folder_is_removed_by_the_next(tmp_path: Path) -> None:
    killed_while_publishing(tmp_path / "out", "killed", 0)
    assert list(tmp_path.glob(f"{PARTIAL}*"))
    publish(tmp_path / "out", "next", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("existing", [False, True])
def test_while_one_process_writes_another_is_refused_and_neither_disturbs_the_other(
    existing: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    if existing:
        publish(folder, "earlier")
    with publishing(folder, overwrite=True, last="last") as partial:
        (partial / "last").write_text("first")
        with pytest.raises(WrongUse) as refused:
            publish(folder, "second")
        assert refused.value.code == "output-busy"
        assert refused.value.remedy
    assert contents(folder) == {"last": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_file_locks_results_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    def none(self: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    publish(tmp_path / "out", "first")
    publish(tmp_path / "out", "second")
    assert contents(tmp_path / "out") == dict.fromkeys(EARLIER, "second")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out-of-memory"),
        (RuntimeError("can't start new thread"), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "out-of-memory"),
        (OSError(12, "Cannot allocate memory"), "out-of-memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out-of-memory"),
        (ImportError("No module named 'torch'"), "package-missing"),
        (OSError(28, "No space left on device"), "disk-full"),
    ],
)
def test_short_resources_have_one_code_however_they_show(error: Exception, code: str) -> None:
    refusal = foreseen(error, "cpu")
    assert refusal is not None
    assert refusal.code == code
    assert refusal.remedy


def test_a_fault_of_the_software_is_not_taken_for_anything_else() -> None:
    assert foreseen(KeyError("x"), "cpu") is None


def test_a_closed_standard_error_becomes_the_null_device_so_that_no_file_takes_its_number(tmp_path: Path) -> None:
    code = f"""
import os, sys
from {open_standard_streams.__module__} import open_standard_streams
os.close(2)
sys.stderr = None
open_standard_streams()
with open(sys.argv[1], "w") as file:
    os.write(2, b"printed by a library")
    print("log", file=sys.stderr, flush=True)
    file.write("content")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT, check=True)
    assert (tmp_path / "file").read_text() == "content"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_refusal_that_nobody_hears_still_has_its_exit_code(stream: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "MTMed3DCore", "analyze", "--json", "-o", "x"]
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    done = subprocess.run(command, cwd=ROOT, text=True, **{stream: write, other: subprocess.PIPE})
    os.close(write)
    heard = done.stdout or done.stderr
    assert done.returncode == 2
    assert "No study is given" in heard
    assert "Traceback" not in heard


def test_a_stuck_worker_is_ended_by_a_cancel_of_the_panel(make: Callable[[], Site]) -> None:
    from Testing.faults.workers import WORKER_FAULTS

    fault = next(each for each in WORKER_FAULTS if "SIGSTOP" in each.name)
    site = make()
    assert fault.act(site).code == "cancelled"
    assert site.left() == []
    assert site.results() == "none"
    shutil.rmtree(site.root)
