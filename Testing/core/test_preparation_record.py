"""The record of a preparation goes out with the findings and comes back with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.exports import read_findings, write_findings
from MTMed3DCore.exports.json_file import findings_document
from MTMed3DCore.findings import Findings
from MTMed3DCore.geometry import Grid
from MTMed3DCore.preparation.record import PreparationRecord, Registration
from Testing.example_findings import GRIDS, findings_on, rotation


@pytest.fixture
def findings() -> Findings:
    found = findings_on(GRIDS["oblique, left-handed"])
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation(3, -2, 5), (1.5, -4.0, 0.25)
    working = Grid((10, 11, 12), np.diag([2.0, 2.0, 2.0, 1.0]))
    brain = np.zeros(found.grid.shape, bool)
    brain[1:19, 2:22, 1:15] = True
    registrations = (
        Registration("t1", np.eye(4), "header", "not-needed"),
        Registration("t2", matrix, "mutual-information", "good", 0.31, 0.9, 0.6, 6.2, 4.3),
        Registration("flair", np.eye(4), "header", "doubtful", 2.9, 0.4, 0.5),
    )
    return replace(found, preparation=PreparationRecord(found.grid, working, brain, "built-in", registrations))


def test_findings_read_back_hold_the_same_preparation(findings: Findings, tmp_path: Path) -> None:
    write_findings(findings, tmp_path / "out")
    read = read_findings(tmp_path / "out").preparation
    assert read.document() == findings.preparation.document()
    np.testing.assert_array_equal(read.brain, findings.preparation.brain)
    assert read.native.same_as(findings.grid)
    assert read.registrations[1].moves
    assert not read.registrations[2].moves


def test_they_are_written_again_with_it(findings: Findings, tmp_path: Path) -> None:
    write_findings(findings, tmp_path / "out")
    read = read_findings(tmp_path / "out")
    write_findings(read, tmp_path / "again")
    documents = [json.loads((tmp_path / name / "findings.json").read_text()) for name in ("out", "again")]
    assert documents[0]["preparation"] == documents[1]["preparation"]
    for name in ("brain_mask.nii.gz", "t2_to_t1ce.tfm", "preparation.json"):
        assert (tmp_path / "again" / "preparation" / name).is_file()


def test_without_the_folder_the_figures_remain(findings: Findings, tmp_path: Path) -> None:
    write_findings(findings, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "preparation")
    read = read_findings(tmp_path / "out")
    assert read.preparation.brain is None
    assert read.preparation.document() == findings.preparation.document()
    write_findings(read, tmp_path / "again")
    assert not (tmp_path / "again" / "preparation").exists()
    assert read_findings(tmp_path / "again").preparation.brain_ml == findings.preparation.brain_ml


def test_an_edited_mask_is_read_as_it_is_and_the_figures_stay_those_of_the_analysis(
    findings: Findings, tmp_path: Path
) -> None:
    write_findings(findings, tmp_path / "out")
    path = tmp_path / "out" / "preparation" / "brain_mask.nii.gz"
    smaller = findings.preparation.brain.copy()
    smaller[10:] = False
    nibabel.save(nibabel.Nifti1Image(smaller.astype(np.uint8), findings.grid.affine), path)
    read = read_findings(tmp_path / "out").preparation
    np.testing.assert_array_equal(read.brain, smaller)
    assert read.brain_ml == pytest.approx(findings.preparation.brain_ml)


def test_findings_of_before_there_were_records_are_read_as_ever(findings: Findings, tmp_path: Path) -> None:
    write_findings(replace(findings, preparation=None), tmp_path / "out")
    assert "preparation" not in json.loads((tmp_path / "out" / "findings.json").read_text())
    assert read_findings(tmp_path / "out").preparation is None


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("registrations", 1, "verdict"), "splendid"),
        (("registrations", 1, "t1ce_to_sequence_ras"), [[1.0]]),
        (("working_grid",), {"shape": [10, 11]}),
        (("brain_mask", "source"), "magic"),
    ],
)
def test_a_damaged_record_is_refused(findings: Findings, tmp_path: Path, place: tuple, value: object) -> None:
    write_findings(findings, tmp_path / "out")
    path = tmp_path / "out" / "findings.json"
    document = findings_document(read_findings(tmp_path / "out"))
    part = document["preparation"]
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(document))
    with pytest.raises(InputRefused, match="preparation") as refused:
        read_findings(tmp_path / "out")
    assert refused.value.code == "findings-invalid"
