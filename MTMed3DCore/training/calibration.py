"""The thresholds with which a trained network is read, chosen on synthetic studies of the held-out family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.findings import Lesion
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.inference.lesions import find_lesions
from MTMed3DCore.inference.windows import RawResult
from MTMed3DCore.networks import TaskNetwork
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.synthetic import SyntheticStudy, make_study
from MTMed3DCore.training.examples import synthetic_example
from MTMed3DCore.training.patches import region_channels

FAMILY = "held_out"
FIRST_SEED = 20_000_000
"""Apart from the seeds of training and from those that the model card's figures are measured on."""
REGION_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SMALLEST_LESIONS_ML = (0.1, 0.2, 0.5, 1.0, 2.0)
SCORE_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SMALLEST_LONE_ML = (0.0, 2.0, 5.0, 10.0, 20.0)
BARE_BOX_SCORES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
CALIBRATION_STUDIES = 24
WORTH_MIRRORING = 0.005
"""Gain in mean Dice for which a study may take twice the time."""
HIT_IOU = 0.1
"""Overlap from which a lesion counts as found: the hit criterion of the published work."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A network's raw result on a study, and the truth; the grade is 1 high, 0 low, None without tumour."""

    raw: RawResult
    prepared: PreparedStudy
    regions: npt.NDArray[np.bool_]
    boxes: Sequence[VoxelBox]
    grade: int | None = None


def as_prepared(study: SyntheticStudy) -> PreparedStudy:
    """A synthetic study as preparation would give it."""
    image = synthetic_example(study).image.cpu().numpy()
    return PreparedStudy(image, study.brain.cpu().numpy(), study.grid, study.grid, stripped=True)


def run_over(
    network: TaskNetwork, settings: InferenceSettings, seeds: Iterable[int], device: str = "cpu"
) -> Iterable[tuple[SyntheticStudy, Outcome]]:
    """Run a network, in evaluation mode on `device`, over studies of the held-out family."""
    for seed in seeds:
        study = make_study(seed, spacing_mm=settings.spacing_mm, family=FAMILY)
        prepared = as_prepared(study)
        raw = run_network(network, prepared, settings, device)
        yield study, Outcome(raw, prepared, region_channels(study.labels).numpy() > 0, study.boxes, study.grade)


def calibrated(settings: InferenceSettings, outcomes: Sequence[Outcome]) -> InferenceSettings:
    """Settings with each region's threshold of best mean Dice, then the lesions' thresholds of best F1.

    The regions' thresholds come from studies with tumour: what is found without one is for the lesions' to drop.
    Of equally good thresholds the lowest is taken: a reader drops a false lesion sooner than he finds a missed one.

    Args:
        settings: whose other values the outcomes were made with; its score threshold must not exceed the lowest of
            `SCORE_THRESHOLDS`, else there are no boxes to choose among.
        outcomes: of studies that training has not seen.
    """
    with_tumour = [each for each in outcomes if each.regions.any()]
    if with_tumour:
        by_level = [region_dice(replace(settings, region_thresholds=(t,) * 3), with_tumour) for t in REGION_THRESHOLDS]
        best_levels = np.argmax(by_level, axis=0)
        settings = replace(settings, region_thresholds=[REGION_THRESHOLDS[level] for level in best_levels])
    by_size = [
        replace(settings, minimum_lesion_ml=smallest, score_threshold=score, minimum_lone_ml=lone)
        for lone, smallest, score in product(SMALLEST_LONE_ML, SMALLEST_LESIONS_ML, SCORE_THRESHOLDS)
    ]
    settings = _of_best_f1(by_size, outcomes)
    return _of_best_f1([replace(settings, bare_box_score=score) for score in BARE_BOX_SCORES], outcomes)


def _of_best_f1(candidates: Sequence[InferenceSettings], outcomes: Sequence[Outcome]) -> InferenceSettings:
    """The first of the settings whose lesions have the highest F1."""
    return candidates[int(np.argmax([round(lesion_f1(each, outcomes), 9) for each in candidates]))]


def region_dice(settings: InferenceSettings, outcomes: Sequence[Outcome]) -> npt.NDArray[np.float64]:
    """Mean over studies of the Dice of each region (3,) with the settings' thresholds."""
    found = [zip(settings.regions_of(o.raw.regions), o.regions, strict=True) for o in outcomes]
    means: npt.NDArray[np.float64] = np.mean([[dice(f, t) for f, t in pairs] for pairs in found], axis=0)
    return means


def best_settings(network: TaskNetwork, settings: InferenceSettings, device: str = "cpu") -> InferenceSettings:
    """Calibrated settings, with the mirror image where its gain in Dice is worth the time.

    Args:
        network: in evaluation mode on `device`.
        settings: as `calibrated` wants them.
    """
    plain, mirrored = (tried(network, replace(settings, mirrored=each), device=device) for each in (False, True))
    return mirrored[0] if mirrored[1] >= plain[1] + WORTH_MIRRORING else plain[0]


def tried(
    network: TaskNetwork, settings: InferenceSettings, count: int = CALIBRATION_STUDIES, device: str = "cpu"
) -> tuple[InferenceSettings, float]:
    """The settings calibrated on the first `count` calibration studies, and the mean Dice that they reach there."""
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    outcomes = [outcome for _, outcome in run_over(network, settings, seeds, device)]
    tuned = calibrated(settings, outcomes)
    return tuned, float(region_dice(tuned, outcomes).mean())


def lesion_f1(settings: InferenceSettings, outcomes: Sequence[Outcome]) -> float:
    """Harmonic mean of precision and sensitivity of the lesions that these settings give, pooled over studies."""
    judged = [hit for outcome in outcomes for _, hit in judged_lesions(settings, outcome)]
    total = len(judged) + sum(len(outcome.boxes) for outcome in outcomes)
    return 1.0 if total == 0 else 2.0 * sum(judged) / total


def judged_lesions(settings: InferenceSettings, outcome: Outcome) -> list[tuple[Lesion, bool]]:
    """The lesions that these settings give, in order of falling score, and whether each hits a box of its own."""
    grid = outcome.prepared.grid
    lesions = find_lesions(
        outcome.raw.regions,
        [VoxelBox.from_list(box) for box in outcome.raw.boxes],
        list(outcome.raw.scores),
        grid,
        settings,
        detects=outcome.raw.detects,
    ).lesions
    free = list(outcome.boxes)
    judged = []
    for lesion in lesions:
        box = lesion.box.to_voxel(grid)
        match = max(free, key=box.iou, default=None)
        hit = match is not None and box.iou(match) >= HIT_IOU
        if hit and match is not None:
            free.remove(match)
        judged.append((lesion, hit))
    return judged
