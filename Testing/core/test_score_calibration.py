"""Scores that are taken at their word: what is fitted, what a bundle keeps of it, and what an analysis makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MTMed3DCore.bundles import read_bundle, record_calibration
from MTMed3DCore.bundles.calibration import (
    LogitLine,
    entropy_limit,
    grade_calibration,
    grade_line,
    lesion_calibration,
)
from MTMed3DCore.exports import report_content as content
from MTMed3DCore.exports.json_file import document_findings, findings_document, write_json
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.inference.pipeline import _with_probabilities
from MTMed3DCore.inference.windows import RawResult
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.training.calibration import Outcome, judged_lesions
from MTMed3DCore.training.score_calibration import fit_calibration, fit_line
from Testing.corpus.model import write_model
from Testing.example_findings import GRIDS, findings_on

SAID = {"method": "Platt scaling", "studies": 40, "data": "synthetic studies"}
LESIONS = {**SAID, "detection": {"slope": 2.0, "intercept": -0.5}, "region": {"slope": 0.0, "intercept": -1.0}}
SETTINGS = InferenceSettings(score_threshold=0.05, minimum_lesion_ml=0.0)


def metadata(**keys: Any) -> dict[str, Any]:
    return {"mtmed3d": keys}


class TestBundle:
    def test_a_line_of_slope_one_changes_nothing_and_half_stays_half(self) -> None:
        assert LogitLine(1.0)(0.83) == pytest.approx(0.83)
        assert grade_line({"temperature": 3.0})(0.5) == pytest.approx(0.5)
        assert grade_line({"temperature": 2.0})(0.9) == pytest.approx(0.75)
        assert grade_line(None)(0.9) == pytest.approx(0.9)

    def test_certain_scores_stay_finite(self) -> None:
        assert 0 <= LogitLine(200.0)(0.0) < 1e-9
        assert LogitLine(200.0)(1.0) == 1.0

    def test_each_origin_has_its_own_line(self) -> None:
        read = lesion_calibration(metadata(lesion_calibration=LESIONS))
        assert read is not None
        assert read.lines["detection"](0.5) == pytest.approx(1 / (1 + exp(0.5)))
        assert read.lines["region"](0.9) == pytest.approx(1 / (1 + exp(1.0)))
        assert read.said == SAID

    @pytest.mark.parametrize(
        "spoilt",
        [
            {**LESIONS, "studies": 0},
            {**LESIONS, "detection": {"slope": -1.0, "intercept": 0.0}},
            {**LESIONS, "region": {"slope": float("nan"), "intercept": 0.0}},
            {**LESIONS, "region": {"slope": "$import os", "intercept": 0.0}},
            SAID,
            "calibrated",
        ],
    )
    def test_what_is_malformed_counts_as_absent(self, spoilt: Any) -> None:
        assert lesion_calibration(metadata(lesion_calibration=spoilt)) is None

    def test_a_temperature_must_be_positive(self) -> None:
        good = grade_calibration(metadata(grade_calibration={**SAID, "temperature": 1.7}))
        bad = grade_calibration(metadata(grade_calibration={**SAID, "temperature": -1.7}))
        assert good == {**SAID, "temperature": 1.7}
        assert bad == SAID

    def test_the_limit_of_the_entropy_is_a_number_of_bits(self) -> None:
        assert [entropy_limit(metadata(entropy_limit=value)) for value in (0.6, 0.0, 2.0, True)] == [
            0.6,
            None,
            None,
            None,
        ]
        assert entropy_limit({}) is None

    def test_a_bundle_keeps_its_weights_when_its_calibration_is_recorded(self, tmp_path: Path) -> None:
        before = write_model(tmp_path / "model")
        record_calibration(before.folder, {"lesion_calibration": LESIONS, "entropy_limit": 0.6})
        after = read_bundle(before.folder)
        assert after.sha256 == before.sha256
        assert lesion_calibration(after.metadata) is not None
        assert entropy_limit(after.metadata) == 0.6
        after.load()


class TestFit:
    def test_a_known_line_is_found_again(self) -> None:
        random = np.random.default_rng(0)
        scores = random.uniform(0.05, 0.95, 4000)
        true = np.array([LogitLine(1.6, -0.8)(score) for score in scores])
        slope, intercept = fit_line(scores, random.uniform(size=4000) < true)
        assert slope == pytest.approx(1.6, abs=0.15)
        assert intercept == pytest.approx(-0.8, abs=0.12)

    def test_the_line_never_falls(self) -> None:
        scores = np.linspace(0.1, 0.9, 40)
        slope, intercept = fit_line(scores, scores < 0.5)
        assert slope == pytest.approx(0.0, abs=1e-6)
        assert intercept == pytest.approx(0.0, abs=0.05)

    def test_a_handful_without_an_error_makes_no_certainty(self) -> None:
        line = LogitLine(*fit_line(np.array([0.8, 0.9, 0.7]), np.array([True, True, True])))
        assert 0.7 < line(0.8) < 0.95


def outcome(number: int) -> Outcome:
    """One true lesion, which scores high, and in every other study a false one, which scores low."""
    grid = Grid((48, 32, 32), np.eye(4))
    regions = np.zeros((3, *grid.shape), dtype=np.float32)
    regions[1, 4:14, 4:14, 4:14] = 0.9
    boxes, scores = [[4, 4, 4, 14, 14, 14]], [0.6 + 0.01 * (number % 30)]
    if number % 2 or number % 3 == 0:
        regions[1, 30:36, 20:26, 20:26] = 0.8
        boxes.append([30, 20, 20, 36, 26, 26])
        scores.append(0.2 + 0.01 * (number % 30))
    high = number % 3 != 0
    seems = (0.97 if high else 0.2) if number % 5 else (0.1 if high else 0.9)
    raw = RawResult(regions, np.array(boxes, np.float32), np.array(scores, np.float32), seems)
    image = np.zeros((4, *grid.shape), np.float32)
    prepared = PreparedStudy(image, np.ones(grid.shape, bool), grid, grid, True)
    return Outcome(raw, prepared, regions > 0.5, [VoxelBox((4, 4, 4), (14, 14, 14))], int(high))


class TestCalibration:
    OUTCOMES = tuple(outcome(number) for number in range(40))

    def test_lesions_are_hits_where_they_meet_a_box_of_their_own(self) -> None:
        assert [hit for _, hit in judged_lesions(SETTINGS, self.OUTCOMES[1])] == [True, False]

    def test_what_is_fitted_is_what_a_bundle_can_hold(self) -> None:
        fitted = json.loads(json.dumps(fit_calibration(self.OUTCOMES, SETTINGS), allow_nan=False))
        lesions, grade = lesion_calibration(metadata(**fitted)), grade_calibration(metadata(**fitted))
        assert lesions is not None
        assert grade is not None
        assert lesions.lines["detection"](0.8) > 0.9
        assert lesions.lines["detection"](0.25) < 0.2
        assert fitted["lesion_calibration"]["region"]["pooled"]
        assert (lesions.said["studies"], grade["studies"]) == (40, 40)
        assert grade["temperature"] > 1.2, "a network that is surely wrong in a fifth of the studies must be cooled"
        assert fitted["grade_calibration"]["log_loss"] < fitted["grade_calibration"]["log_loss_before"]
        limit = entropy_limit(metadata(**fitted))
        assert limit is not None
        assert 0.469 < limit < 1.0

    def test_what_a_score_is_worth_does_not_depend_on_the_thresholds_above_it(self) -> None:
        strict = replace(SETTINGS, score_threshold=0.6, minimum_lone_ml=5.0, bare_box_score=0.9)
        assert not any(hit is False for each in self.OUTCOMES for _, hit in judged_lesions(strict, each))
        assert fit_calibration(self.OUTCOMES, strict) == fit_calibration(self.OUTCOMES, SETTINGS)

    def test_easy_studies_make_no_grade_surer_than_the_network_is(self) -> None:
        timid = [replace(o, raw=replace(o.raw, hgg_probability=0.6 if o.grade else 0.4)) for o in self.OUTCOMES]
        assert fit_calibration(timid, SETTINGS)["grade_calibration"]["temperature"] == 1

    def test_nothing_is_said_where_nothing_was_wrong_or_nothing_found(self) -> None:
        right = [replace(each, grade=1) for each in self.OUTCOMES if len(each.raw.boxes) == 1]
        assert set(fit_calibration(right, SETTINGS)) == {"entropy_limit"}


def test_findings_and_report_give_the_probability_beside_the_score(tmp_path: Path) -> None:
    calibration = lesion_calibration(metadata(lesion_calibration=LESIONS))
    assert calibration is not None
    plain = findings_on(GRIDS["oblique"])
    found = replace(plain, lesions=_with_probabilities(plain.lesions, calibration), lesion_calibration=calibration.said)
    assert [each.score for each in found.lesions] == [each.score for each in plain.lesions]
    first, second = (each.probability for each in found.lesions)
    assert first == pytest.approx(LogitLine(2.0, -0.5)(0.97))
    assert second == pytest.approx(1 / (1 + exp(1.0)))
    write_json(found, tmp_path / "findings.json", {"write": 0.0, "total": 1.0})
    document = json.loads((tmp_path / "findings.json").read_text())
    assert document["lesions"][0]["probability"] == pytest.approx(first)
    back = document_findings(document, found.labels)
    assert back.lesions[0].probability == pytest.approx(first)
    assert back.lesion_calibration == SAID
    assert (
        content.lesion_title(found.lesions[0])
        == f"Lesion 1: score 0.97, probability {first:.2f}, found by the detector"
    )
    assert content.overview_table(found).header[2] == "score (prob.)"
    assert content.overview_table(found).rows[0][2] == f"0.97 ({first:.2f})"
    assert "Platt scaling on 40 studies (synthetic studies)" in content.score_note(found)


def test_without_a_calibration_no_probability_is_claimed() -> None:
    found = findings_on(GRIDS["axial"])
    assert _with_probabilities(found.lesions, None) == found.lesions
    assert "probability" not in findings_document(found)["lesions"][0]
    assert content.lesion_title(found.lesions[0]) == "Lesion 1: score 0.97, found by the detector"
    assert "Probability" not in content.score_note(found)
