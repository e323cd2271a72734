"""The starter bundle: trained on synthetic studies, measured on a synthetic family of other parameters.

    python -m MTMed3DCore.training.starter RUN BUNDLE --minutes 60 [--device cuda --precision bf16 --batch 4]
    python -m MTMed3DCore.training.starter RUN2 BUNDLE --minutes 60 --from RUN
    python -m MTMed3DCore.training.starter RUN2 BUNDLE --minutes 0 [--average RUN ...]

write the run's record into RUN and the bundle into BUNDLE; the second goes on from an earlier run, the third makes the
bundle of a run that is there, at its best snapshot, or of the mean of its last weights and those of earlier runs. Real
studies take no part in training, in thresholds or in the choice of a snapshot.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MTMed3DCore.bundles import Bundle, save_bundle
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.networks import TASKS, TaskNetwork, build_network
from MTMed3DCore.synthetic import FAMILIES
from MTMed3DCore.training.calibration import (
    CALIBRATION_STUDIES,
    SCORE_THRESHOLDS,
    best_settings,
    run_over,
    tried,
)
from MTMed3DCore.training.loop import SNAPSHOTS, StarterRun, averaged, train_starter
from MTMed3DCore.training.score_calibration import calibration_outcomes, fit_calibration
from MTMed3DCore.training.settings import StarterSettings
from MTMed3DCore.training.starter_card import CARD, MEAN

FIRST_HELD_OUT_SEED = 10_000_000
SHOWN = ("feature_size", "spacing_mm", "batch", "patch", "wide_patch", "wide_share", "balancing", "precision", "device")
"""Settings that the model card names."""
LESION_THRESHOLDS = ("minimum_lesion_ml", "minimum_core_share", "score_threshold", "minimum_lone_ml", "bare_box_score")
"""Likewise."""
TRAINED_ON = "synthetic studies only (MTMed3DCore.synthetic, family {family}); no patient data"
MINIMUM_CORE_SHARE = 0.05
"""Brightness apart from the tumour with a smaller share of core is left out. Not calibrated: synthetic studies hardly
show it, real ones do (an occipital lobe near the coil), and on the held-out family this value costs nothing."""
STOPPING_STUDIES = 12
"""Of the held-out family, on which a run's snapshots are compared."""


@dataclass(frozen=True)
class HeldOutFigures:
    """What the model card reports; see `CARD` for the meaning of each."""

    count: int
    whole_tumour: float
    tumour_core: float
    enhancing: float
    grade_right: int
    graded: int
    false_ml: float
    tumour_free: int


def measure_held_out(
    network: TaskNetwork, settings: InferenceSettings, count: int = 24, device: str = "cpu"
) -> HeldOutFigures:
    """Run a network over synthetic studies of the held-out family.

    Args:
        network: in evaluation mode on `device`.
        settings: of its bundle.
        count: studies.
    """
    rows, false_ml, right, graded = [], [], 0, 0
    for study, outcome in run_over(network, settings, range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + count), device):
        found = settings.regions_of(outcome.raw.regions)
        rows.append([dice(f, t) for f, t in zip(found, outcome.regions, strict=True)])
        if study.grade is None:
            false_ml.append(float(found[1].sum()) * study.grid.voxel_volume_ml)
        else:
            graded += 1
            probability = outcome.raw.hgg_probability
            right += probability is not None and (probability >= 0.5) == bool(study.grade)
    core, whole, enhancing = np.mean(rows, axis=0).tolist()
    median = float(np.median(false_ml)) if false_ml else 0.0
    return HeldOutFigures(count, whole, core, enhancing, right, graded, median, len(false_ml))


def trained_network(run: StarterRun, device: str = "cpu") -> tuple[TaskNetwork, InferenceSettings]:
    """A run's averaged network, ready to be used, and how it is used before anything is calibrated."""
    training = run.settings
    network = build_network("mtmed3d", training.feature_size, training.tasks, len(run.anchor_shapes))
    network.load_state_dict(run.weights)
    network.to(device).eval()
    network.multiply_out()
    settings = InferenceSettings(
        spacing_mm=training.spacing_mm,
        window=training.wide_patch,
        anchor_shapes=run.anchor_shapes,
        grading_crop=training.patch,
        score_threshold=min(SCORE_THRESHOLDS),
        minimum_core_share=MINIMUM_CORE_SHARE,
    )
    return network, settings


def best_snapshot(folder: Path, device: str = "cpu") -> StarterRun:
    """The snapshot of a run with the best mean Dice on the held-out family, which training does not see."""
    best, best_score = StarterRun.read(folder), -1.0
    for share in SNAPSHOTS:
        try:
            run = StarterRun.read(folder, share)
        except InputRefused:  # the run was stopped before it, or is older than snapshots
            continue
        _, score = tried(*trained_network(run, device), STOPPING_STUDIES, device)
        print(f"{run.steps} steps: mean Dice {score:.3f} on {STOPPING_STUDIES} held-out studies", flush=True)
        if score >= best_score:  # of equals the last: a run that holds the segmentation does not change it
            best, best_score = run, score
    return best


def write_starter(runs: Sequence[StarterRun], folder: Path, version: str, device: str = "cpu") -> Bundle:
    """Calibrate and measure the network of one run, or of several on the average, and write the bundle ``starter``.

    Args:
        runs: that go on from each other, in their order.
        folder: of the bundle; its weights are in half precision.
        version: of the bundle.
        device: to calibrate and measure on.
    """
    run = averaged(runs)
    training = run.settings
    trained_on = TRAINED_ON.format(family=training.family)
    network, settings = trained_network(run, device)
    settings = best_settings(network, settings, device)
    calibration = fit_calibration(calibration_outcomes(network, settings, device), settings)
    figures = measure_held_out(network, settings, device=device)
    card = CARD.format(
        version=version,
        trained_on=trained_on,
        steps=run.steps,
        minutes=run.minutes,
        seeds=", ".join(map(str, run.seeds)),
        mean=MEAN.format(steps=", ".join(map(str, run.mean_of))) if run.mean_of else "",
        **{name: getattr(training, name) for name in SHOWN},
        calibration=CALIBRATION_STUDIES,
        region_thresholds=", ".join(f"{level:g}" for level in settings.region_thresholds),
        **{name: getattr(settings, name) for name in LESION_THRESHOLDS},
        mirrored="; the mirror image is segmented as well" if settings.mirrored else "",
        **vars(figures),
    )
    return save_bundle(
        folder,
        network.cpu(),
        settings,
        name="starter",
        version=version,
        trained_on=trained_on,
        card=card,
        half=True,
        overwrite=True,
        calibration=calibration,
    )


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    defaults = StarterSettings()
    parser.add_argument("--minutes", type=float, default=defaults.minutes)
    parser.add_argument("--device", default=defaults.device)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default=defaults.precision)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--version", default="0.1.0")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="first study; another one for each run")
    parser.add_argument("--family", choices=tuple(FAMILIES), default=defaults.family, help="of the synthetic studies")
    parser.add_argument("--average", type=Path, nargs="+", default=[], help="earlier runs to take the mean with")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=defaults.tasks, help="all unless said")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=(), help="train the decoders of these tasks alone")
    parser.add_argument("--from", dest="earlier", type=Path, nargs="+", default=[], help="run, or mean, to go on from")
    options = parser.parse_args()
    if options.minutes > 0:
        training = StarterSettings(
            minutes=options.minutes,
            device=options.device,
            precision=options.precision,
            batch=options.batch,
            learning_rate=options.learning_rate,
            seed=options.seed,
            family=options.family,
            tasks=tuple(options.tasks),
            only=tuple(options.only),
            balancing="fixed" if options.only else defaults.balancing,
        )
        before = [StarterRun.read(folder) for folder in options.earlier]
        train_starter(training, options.run, averaged(before) if before else None)
    if options.average:
        runs = [StarterRun.read(folder) for folder in (*options.average, options.run)]
    else:
        runs = [best_snapshot(options.run, options.device)]
    bundle = write_starter(runs, options.bundle, options.version, options.device)
    print((bundle.folder / "docs" / "README.md").read_text())


if __name__ == "__main__":
    main()
