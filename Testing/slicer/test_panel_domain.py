"""What the panel shows of a study that does not look like what the model was made for, and of calibrated scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from panel_driver import ObedientWorker, add_study

from MTMed3DCore.domain.check import DomainCheck, notices
from MTMed3DCore.exports import json_file
from MTMed3DCore.findings import Findings

CHECK = DomainCheck("contrast-missing", "the rise", 0.11, 0.28, None, "", "Check the series.")


@pytest.fixture
def doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of the obedient worker warn, and their lesions have probabilities."""
    write = json_file.write_json

    def write_with_doubt(findings: Findings, path: Path) -> None:
        lesions = tuple(replace(each, probability=0.5 * each.score) for each in findings.lesions)
        write(replace(findings, lesions=lesions, domain=(CHECK,), warnings=notices([CHECK])), path)

    monkeypatch.setattr(json_file, "write_json", write_with_doubt)


def test_the_panel_warns_and_shows_probabilities_beside_scores(
    doubtful: None, panel: Any, scene: Any, worker: ObedientWorker, let: Any
) -> None:
    add_study(scene)
    let(lambda: panel.ui.analyzeButton.enabled)
    panel.ui.analyzeButton.click()
    worker.finish()
    let(lambda: panel.findings.study is not None)
    assert "This may not be a pre-operative glioma MR study" in panel.ui.warningsLabel.text
    assert "Check the series." in panel.ui.warningsLabel.text
    assert [row["score"] for row in panel.findings.study.rows()] == ["0.95 (48 %)", "0.50 (25 %)"]
