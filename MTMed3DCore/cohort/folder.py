"""The output folder of a cohort: one run at a time, one folder for each study, one commit for each result.

The hidden folder ``.mtmed3d-cohort`` holds what a run needs beside the results::

    run.lock, run.json      who writes here; the kernel gives the lock back when that process ends, however it ends
    commit.lock             held while a result is put into place
    failed/NAME.json        why a study has no result
    staging/                what is removed when a run ends or the next one begins: results that are being written

A study's folder ``NAME`` holds what `MTMed3DCore.exports.write_findings` writes, ``thumbnail.jpg`` and ``cohort.json``,
which records the study's files with their hashes and the key that says what the result was made from.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from MTMed3DCore.cohort.outcome import Refusal
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.evaluation.files import case_name
from MTMed3DCore.exports import FINDINGS, edited_files
from MTMed3DCore.exports.atomic import MANIFEST, PARTIAL, publishing
from MTMed3DCore.whole_file import write_whole

STATE = ".mtmed3d-cohort"
SUMMARY = "summary.csv"
OVERVIEW = "overview.html"
RECORD = "cohort.json"
RECORD_SCHEMA = "mtmed3d.cohort-study/1"
THUMBNAIL = "thumbnail.jpg"


@dataclass(frozen=True)
class StudyPlace:
    """Where one study's result or failure stands.

    Args:
        cohort: the folder of all.
        name: of the study, as the user knows it.
    """

    cohort: CohortFolder
    name: str

    @property
    def folder(self) -> Path:
        """Of the result."""
        return self.cohort.root / case_name(self.name)

    @property
    def _failed(self) -> Path:
        return self.cohort.state / "failed" / f"{case_name(self.name)}.json"

    def record(self) -> dict[str, Any]:
        """What ``cohort.json`` says of a complete result; empty where there is none."""
        if not (self.folder / FINDINGS).is_file():
            return {}  # the last file to be put into place
        record = _read(self.folder / RECORD)
        return record if record.get("schema") == RECORD_SCHEMA else {}

    def done(self, key: str, run: str | None = None) -> bool:
        """Whether the result of a key is there; with `run`, one that this very run has made."""
        record = self.record()
        return record.get("key") == key and (run is None or record.get("run") == run)

    def refuse_others_work(self, overwrite: bool) -> None:
        """Refuse before any work what committing would refuse after it.

        Raises:
            WrongUse: ``output-not-empty``, the folder holds something that no run for a cohort has written;
                ``output-edited``, a person changed a file of the result that is to be replaced.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise WrongUse("output-is-a-file", f"The output folder {folder} is a file.", "Move it away.")
        if not folder.is_dir():
            return
        if not (overwrite or self._is_ours()) and any(not each.name.startswith(PARTIAL) for each in folder.iterdir()):
            text = f"The output folder {folder} is not empty, and not of a cohort."
            raise WrongUse("output-not-empty", text, "Give another folder, or --overwrite to replace earlier results.")
        edited = edited_files(folder)
        if edited:
            text = f"{folder / edited[0]} changed after it was written; edits are never replaced."
            raise WrongUse("output-edited", text, "Move the folder away to have the study analysed again.")

    def commit(
        self,
        stage: Path,
        key: str,
        inputs: Sequence[Mapping[str, Any]],
        run: str,
        overwrite: bool,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        """Put a result into place, unless another process has done so meanwhile.

        Args:
            stage: a folder of the finished files; it is used up.
            key: of `study_key`.
            inputs: of `known_inputs`.
            run: this run.
            overwrite: whether a folder that holds something else may be written into.
            also: what is to be written elsewhere first.
        """
        with self.cohort.committing():
            if self.done(key, run if overwrite else None):
                return
            also()
            replaces = overwrite or self._is_ours()
            for left in self.folder.glob(f"{PARTIAL}*"):  # of a run that was killed at this very place
                shutil.rmtree(left)
            with publishing(self.folder, overwrite=replaces, last=FINDINGS) as partial:
                for each in stage.iterdir():
                    if each.name != MANIFEST:  # the one of the whole folder takes its place
                        each.rename(partial / each.name)
                document = {"schema": RECORD_SCHEMA, "id": self.name, "key": key, "run": run, "inputs": list(inputs)}
                write_whole(partial / RECORD, json.dumps(document, indent=1) + "\n")
            self.forgive()

    def fail(self, refusal: Refusal) -> None:
        """Record why the study has no result."""
        document = {"id": self.name, "when": _now(), **asdict(refusal)}
        write_whole(self._failed, json.dumps(document, indent=1) + "\n")

    def forgive(self) -> None:
        """Forget an earlier failure."""
        self._failed.unlink(missing_ok=True)

    def failure(self) -> Refusal | None:
        """The recorded failure."""
        document = _read(self._failed)
        try:
            return Refusal(**{name: document[name] for name in ("code", "text", "remedy", "exit_code")})
        except KeyError:
            return None

    def _is_ours(self) -> bool:
        """Whether a run for a cohort wrote this folder; also one that was killed while it replaced a result."""
        return (self.folder / RECORD).is_file() or any(self.folder.glob(f"{PARTIAL}*"))


@dataclass(frozen=True)
class CohortFolder:
    """The output folder of a cohort.

    Args:
        root: absolute.
    """

    root: Path

    @property
    def state(self) -> Path:
        """What a run needs beside the results."""
        return self.root / STATE

    @property
    def staging(self) -> Path:
        """What is removed when a run ends, or when the next one begins."""
        return self.state / "staging"

    def place(self, name: str) -> StudyPlace:
        """Where a study's result stands."""
        return StudyPlace(self, name)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder for one run, and leave no unfinished file in it.

        Raises:
            WrongUse: ``output-busy``, another run writes there; ``output-no-locks``; ``output-is-a-file``.
        """
        if self.root.exists() and not self.root.is_dir():
            raise WrongUse("output-is-a-file", f"The output folder {self.root} is a file.", "Name a folder.")
        self.state.mkdir(parents=True, exist_ok=True)
        about = self.state / "run.json"
        with self._lock("run.lock", 0.0, about):
            write_whole(about, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": _now()}))
            self._clean()
            self.staging.mkdir(exist_ok=True)
            try:
                yield
            finally:
                self._clean()
                about.unlink(missing_ok=True)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Hold the right to put one result into place; also between the machines of a cluster."""
        with self._lock("commit.lock", -1.0):
            yield

    def new_stage(self) -> Path:
        """A name for a folder in which a result is written before it is put into place; not made yet."""
        return self.staging / uuid4().hex

    def _clean(self) -> None:
        """Remove what runs left that were killed."""
        shutil.rmtree(self.staging, ignore_errors=True)
        for left in self.root.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str, timeout_s: float, about: Path | None = None) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self.state / name, timeout=timeout_s)
        try:
            lock.acquire()
        except Timeout as error:
            who = {} if about is None else _read(about)
            named = f" (process {who.get('process')} on {who.get('host')}, since {who.get('since')})" if who else ""
            text = f"Another run writes into {self.root}{named}."
            raise WrongUse("output-busy", text, "Wait until it ends, or give another folder.") from error
        except NotImplementedError as error:
            text = f"The file system of {self.root} has no file locks."
            raise WrongUse("output-no-locks", text, "Give a folder on another file system.") from error
        try:
            yield
        finally:
            lock.release()


def _read(path: Path) -> dict[str, Any]:
    """A small JSON object of ours; empty where it is missing or damaged, so that the work is done again."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
