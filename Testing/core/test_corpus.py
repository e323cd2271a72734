"""Every bad input of `Testing.corpus` has its one outcome, through the command line and through the worker.

Results are written without pictures here, which take longest; `python -m Testing.corpus.table` writes everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from MTMed3DCore import exports
from Testing.corpus.case import Case, four_files
from Testing.corpus.cases import ALL
from Testing.corpus.model import write_model
from Testing.corpus.plain import write_plain
from Testing.corpus.runner import Labels, Worker, canonical_labels, faults, through_cli

REFUSED = [case for case in ALL if case.expected.kind == "refused"]
ANALYSED_BY_WORKER = {"names_that_are_no_unicode", "t2_and_flair_swapped"}
"""The worker draws every picture, so that only these are analysed through it here."""
FOR_WORKER = [case for case in ALL if case in REFUSED or case.name in ANALYSED_BY_WORKER]


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("write_preview", "write_report", "write_report_pdf"):
        monkeypatch.setattr(exports, name, lambda *arguments: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("corpus") / "model").folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("corpus") / "plain")


@pytest.fixture(scope="module")
def plain_labels(plain: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write_preview", "write_report", "write_report_pdf"):
            patch.setattr(exports, name, lambda *arguments: None)
        result = tmp_path_factory.mktemp("corpus") / "result"
        assert through_cli(four_files(plain), result, model).kind == "analysed"
    labels = canonical_labels(result)
    assert np.unique(labels).size > 1, "the comparison of results needs something in the plain one"
    return labels


@pytest.fixture(scope="module")
def worker(model: Path) -> Iterator[Worker]:
    process = Worker(model)
    yield process
    process.close()


def test_the_corpus_holds_at_least_sixty_cases_of_different_names() -> None:
    assert len(ALL) >= 60
    assert [name for name, count in Counter(case.name for case in ALL).items() if count > 1] == []


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_command_line_gives_the_one_right_outcome(
    case: Case, plain: Path, model: Path, plain_labels: Labels, tmp_path: Path, no_pictures: None
) -> None:
    got = through_cli(case.make(tmp_path / "case", plain), tmp_path / "out", model)
    assert faults(case.expected, got, plain_labels) == []
    if got.kind == "refused":
        assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "out") == ["case"]


@pytest.mark.parametrize("case", FOR_WORKER, ids=lambda case: case.name)
def test_the_worker_gives_the_same_outcome_and_lives_on(
    case: Case, plain: Path, plain_labels: Labels, worker: Worker, tmp_path: Path
) -> None:
    given = case.make(tmp_path / "case", plain)
    if given.place is not None:
        pytest.skip("the worker is given four files, never a folder or a list")
    pid = worker.pid
    got = worker(given, tmp_path / "out")
    assert got is not None
    assert faults(case.expected, got, plain_labels) == []
    assert worker.running
    assert worker.pid == pid
    if got.kind == "refused":
        assert not (tmp_path / "out").exists()
