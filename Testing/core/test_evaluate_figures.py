"""Detection, grading and intervals against hand-computed cases, scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics
from sklearn.calibration import calibration_curve

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.evaluation.bootstrap import Bootstrap
from MTMed3DCore.evaluation.detection import detection_figures, froc_curve, match_boxes, sensitivity_at
from MTMed3DCore.evaluation.grading import (
    fit_temperature,
    grading_figures,
    log_loss,
    reliability,
    scale,
)


def cube(x: float, side: float = 10) -> list[float]:
    return [x, 0, 0, x + side, side, side]


ONE_OF_TWO = [
    match_boxes([cube(0), cube(50)], [0.9, 0.8], [cube(0)]),
    match_boxes([cube(0)], [0.7], [cube(0)]),
]
"""Two lesions, both found; the false box scores between the two."""


def test_average_precision_is_the_mean_over_101_recalls():
    figures = detection_figures(ONE_OF_TWO)
    assert figures["AP_IoU_0.10"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101, abs=1e-6)
    assert figures["AR_IoU_0.10"] == figures["sensitivity"] == 1
    assert figures["false_per_case"] == 0.5


def test_map_and_mar_count_the_overlaps_that_a_box_reaches():
    """Boxes that share half of each with the truth have IoU 1/3: five of the nine overlaps from 0.10 to 0.50."""
    figures = detection_figures([match_boxes([cube(5)], [0.5], [cube(0)])])
    assert figures["AP_IoU_0.10"] == pytest.approx(1)
    assert figures["mAP_IoU_0.10_0.50_0.05"] == pytest.approx(5 / 9)
    assert figures["mAR_IoU_0.10_0.50_0.05"] == pytest.approx(5 / 9)


def test_a_lesion_is_found_once_and_a_second_box_on_it_is_false():
    twice = match_boxes([cube(0), cube(1)], [0.6, 0.9], [cube(0)])
    assert twice.scores.tolist() == [0.9, 0.6]
    assert twice.hits.tolist() == [True, False]


def test_figures_of_average_precision_fall_with_a_false_box_only_where_it_outranks_a_hit():
    late = [ONE_OF_TWO[1], match_boxes([cube(0), cube(50)], [0.9, 0.1], [cube(0)])]
    assert detection_figures(late)["AP_IoU_0.10"] == pytest.approx(1, abs=1e-6)


def test_cases_without_boxes_or_lesions_count_for_false_boxes_and_missed_lesions():
    nothing, missed, false = match_boxes([], [], []), match_boxes([], [], [cube(0)]), match_boxes([cube(0)], [0.5], [])
    figures = detection_figures([nothing, missed, false])
    assert (figures["AP_IoU_0.10"], figures["sensitivity"], figures["FROC"]) == (0, 0, 0)
    assert figures["false_per_case"] == pytest.approx(1 / 3)
    alone = detection_figures([nothing, false])
    assert np.isnan(alone["AP_IoU_0.10"])
    assert alone["false_per_case"] == 0.5
    assert all(np.isnan(value) or value == 0 for value in detection_figures([nothing]).values())


def test_the_froc_curve_is_a_step_through_every_score_with_equal_scores_taken_together():
    false, sensitivity = froc_curve(ONE_OF_TWO)
    assert false.tolist() == [0, 0, 0.5, 0.5]
    assert sensitivity.tolist() == [0, 0.5, 0.5, 1]
    assert sensitivity_at(ONE_OF_TWO, (0.125, 0.49, 0.5, 8)).tolist() == [0.5, 0.5, 1, 1]
    assert detection_figures(ONE_OF_TWO)["FROC"] == pytest.approx((0.5 * 2 + 1 * 5) / 7)
    tied = [match_boxes([cube(0), cube(50)], [0.5, 0.5], [cube(0)])]
    assert froc_curve(tied)[0].tolist() == [0, 1]


def some_grades(count: int = 60, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    high = random.random(count) < 0.6
    logits = 3 * random.normal(np.where(high, 0.7, -0.7), 1.0)
    return np.round(1 / (1 + np.exp(-logits)), 2).clip(0.01, 0.99), high


def test_grading_figures_are_those_of_scikit_learn():
    p, high = some_grades()
    figures = grading_figures(p, high)
    assert len(set(p)) < len(p)  # ties, which count half in the AUC
    assert figures["auc"] == pytest.approx(metrics.roc_auc_score(high, p))
    assert figures["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(high, p >= 0.5))
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(high, p >= 0.5))
    assert figures["sensitivity"] == pytest.approx(metrics.recall_score(high, p >= 0.5))
    assert figures["specificity"] == pytest.approx(metrics.recall_score(~high, p < 0.5))
    assert figures["brier"] == pytest.approx(metrics.brier_score_loss(high, p))


def test_the_reliability_curve_is_that_of_scikit_learn():
    p, high = some_grades(400)
    p = p[:] + 1e-4  # off the edges of the bins, which the two close at different ends
    shares, means = calibration_curve(high, p, n_bins=10)
    bins = reliability(p, high)
    assert [b.share for b in bins] == pytest.approx(shares)
    assert [b.probability for b in bins] == pytest.approx(means)
    assert sum(b.count for b in bins) == 400
    assert reliability(np.array([1.0]), np.array([True]))[0].count == 1


def test_always_hgg_scores_as_a_guess():
    high = np.array([True, True, True, False])
    figures = grading_figures(np.ones(4), high)
    assert (figures["auc"], figures["balanced_accuracy"], figures["brier"]) == (0.5, 0.5, 0.25)
    assert (figures["sensitivity"], figures["specificity"], figures["calibration_error"]) == (1, 0, 0.25)


def test_a_case_that_the_model_left_ungraded_is_charged_and_one_grade_alone_has_no_auc():
    figures = grading_figures(np.array([0.9, np.nan, 0.2]), np.array([True, True, False]))
    assert (figures["sensitivity"], figures["specificity"]) == (0.5, 1)
    assert figures["brier"] == pytest.approx((0.01 + 0.25 + 0.04) / 3)
    alone = grading_figures(np.array([0.9, 0.4]), np.array([True, True]))
    assert np.isnan(alone["auc"])
    assert alone["accuracy"] == 0.5


def test_the_temperature_is_the_one_of_least_log_loss():
    p, high = some_grades()
    fitted = fit_temperature(p.tolist(), high.tolist())
    logits = np.log(p / (1 - p))
    grid = np.linspace(0.2, 8, 4000)
    losses = [metrics.log_loss(high, 1 / (1 + np.exp(-logits / each))) for each in grid]
    assert fitted == pytest.approx(grid[int(np.argmin(losses))], abs=0.01)
    assert log_loss(scale(p, fitted), high) == pytest.approx(min(losses), abs=1e-6)
    assert log_loss(scale(p, fitted), high) < log_loss(p, high)
    assert scale(np.array([0.2, 0.5, 0.9]), 1.0) == pytest.approx([0.2, 0.5, 0.9])
    assert np.array_equal(scale(p, fitted) >= 0.5, p >= 0.5)  # no grade changes
    with pytest.raises(InputRefused, match="both grades"):
        fit_temperature([0.2, 0.9], [True, True])


def test_intervals_are_those_of_scipys_percentile_bootstrap_and_the_same_for_a_seed():
    values = np.random.default_rng(7).normal(0.8, 0.1, 80)
    patients = [f"p{n}" for n in range(80)]

    def figures(indices):
        return {"mean": float(values[indices].mean())}

    first, again = (Bootstrap(4000, 3).estimate(patients, figures)["mean"] for _ in range(2))
    reference = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert first == again
    assert first.value == values.mean()
    assert [first.low, first.high] == pytest.approx(list(reference.confidence_interval), abs=0.002)
    assert Bootstrap(4000, 4).estimate(patients, figures)["mean"] != first


def test_studies_of_one_patient_are_drawn_together_and_make_no_interval_narrower():
    values = np.random.default_rng(8).normal(size=20)
    once = Bootstrap(500).estimate([f"{n:02}" for n in range(20)], lambda i: {"m": float(values[i].mean())})["m"]
    thrice = np.repeat(values, 3)
    owners = [f"{n // 3:02}" for n in range(60)]
    repeated = Bootstrap(500).estimate(owners, lambda i: {"m": float(thrice[i].mean())})["m"]
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))


def test_a_figure_that_most_resamples_do_not_define_has_no_interval():
    def figures(indices):
        return {"rare": 1.0 if {0, 1} <= set(indices.tolist()) else np.nan, "never": np.nan}

    estimates = Bootstrap(200).estimate([f"p{n}" for n in range(12)], figures)
    assert estimates["rare"].value == 1
    assert np.isnan([estimates["rare"].low, estimates["never"].value, estimates["never"].high]).all()
    assert np.isnan(Bootstrap(200).estimate(["p", "p"], lambda i: {"m": 1.0})["m"].low)
