"""Bad input through the third entrance: files in a scene, and the panel's own classes from there on.

`python -m Testing.corpus.table` takes every case this way; these are one for each place where a case may end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from Testing.corpus.cases import ALL
from Testing.corpus.model import write_model
from Testing.corpus.panel import READER, Panel
from Testing.corpus.plain import write_plain
from Testing.corpus.runner import Got, faults, through_cli

CASES = {case.name: case for case in ALL}


@pytest.fixture(scope="module")
def panel(application: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Panel]:
    made = Panel(write_model(tmp_path_factory.mktemp("corpus") / "model").folder)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("empty_file", READER),
        ("sequence_half_a_metre_away", "inputs"),
        ("all_zero", "constant"),
        ("model_that_nobody_has", "model-unknown"),
    ],
)
def test_a_bad_study_is_refused_where_its_fault_shows(name: str, code: str, panel: Panel, tmp_path: Path) -> None:
    got = panel(CASES[name].make(tmp_path / "case", write_plain(tmp_path / "plain")))
    assert (got.kind, got.codes) == ("refused", (code,))
    assert got.text


def test_a_good_study_under_awkward_names_comes_out_as_through_the_command_line(panel: Panel, tmp_path: Path) -> None:
    case = CASES["names_with_spaces_accents_and_a_line_break"]
    given = case.make(tmp_path / "case", write_plain(tmp_path / "plain"))
    by_panel, by_command = panel(given), through_cli(given, tmp_path / "out", panel.model)
    assert isinstance(by_panel, Got)
    assert by_command.labels is not None
    assert by_command.labels.any()
    assert faults(case.expected, by_panel, by_command.labels) == []


def test_what_is_no_volume_of_a_scene_does_not_come_this_way(panel: Panel, tmp_path: Path) -> None:
    got = panel(CASES["empty_folder"].make(tmp_path / "case", write_plain(tmp_path / "plain")))
    assert got == "takes volumes of the scene"
