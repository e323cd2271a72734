"""From a list of labelled images to a bundle, by the trainer and the run folder of brain studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from MTMed3DCore.bundles import Bundle, read_bundle
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.images2d.evaluation import evaluate_images
from MTMed3DCore.images2d.feeding import ImageBatches
from MTMed3DCore.images2d.imagelist import ImageCase, ImageList
from MTMed3DCore.images2d.pixels import image_size
from MTMed3DCore.images2d.settings import AUGMENTATION, ImageSettings, check_augmentation
from MTMed3DCore.networks import find_family
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.training import run_folder
from MTMed3DCore.training.anchors import fit_anchor_shapes
from MTMed3DCore.training.checkpoint import load_checkpoint
from MTMed3DCore.training.distributed import Team, join_team
from MTMed3DCore.training.feeding import check_share
from MTMed3DCore.training.finished import of_list, write_bundle
from MTMed3DCore.training.run import run_steps
from MTMed3DCore.training.run_folder import BUNDLE, CHECKPOINT
from MTMed3DCore.training.settings import ListSettings
from MTMed3DCore.training.trainer import Trainer

ANCHORS = 3
FALLBACK_ANCHORS = ((8.0, 8.0), (6.0, 12.0), (12.0, 6.0))
"""In pixels of the square, where a list has too few boxes to fit any."""


@dataclass(frozen=True)
class ImageTrainSettings(ListSettings):
    """How a network is trained on images. ``patch`` is the side of the square to which they are resized.

    Args:
        images: that go through the network together, and share batch norms; `batch` such groups make a step.
        channels: 3 for colour, 1 for grey.
        focal: add the focal term to the Dice loss of the regions.
        label_weights: by label, for labels that do not exclude each other; 1 where none is given.
        augmentation: probability of each kind of `AUGMENTATION`; one that is not named is not done.
    """

    tasks: tuple[str, ...] = ("segmentation", "grading")
    network_family: str = "resformer"
    feature_size: int = 64
    patch: int = 224
    wide_patch: int = 224
    learning_rate: float = 1e-4
    weight_decay: float = 3e-5
    balancing: str = "fixed"
    images: int = 8
    channels: int = 3
    focal: bool = True
    label_weights: dict[str, float] = field(default_factory=dict)
    augmentation: dict[str, float] = field(default_factory=lambda: dict(AUGMENTATION))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1:
            raise WrongUse("training-setting", "The training setting images must be at least 1.")
        if self.channels not in (1, 3):
            raise WrongUse("training-setting", f"channels is {self.channels}.", "Give 3 for colour, 1 for grey.")
        check_augmentation(self.augmentation)


def train_images(
    listed: ImageList,
    folder: Path,
    settings: ImageTrainSettings,
    *,
    resume: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Train on the images of a list.

    Args:
        listed: with truths for the tasks that are trained.
        folder: of the run; new, or with `resume` one that was interrupted.
        settings: of the run; a resumed run must have the same.
        progress: told as stage ``train``, step by step, and may cancel there.

    Raises:
        InputRefused: ``no-training-cases``, an image that cannot be read.
        WrongUse: ``run-exists``, ``run-missing``, ``run-differs``, ``fold-unknown``, ``family-dimensions``,
            ``family-tasks``, ``training-diverged``.
    """
    with join_team(settings.device) as team:
        return _train(listed, folder, settings, resume, progress if team.leads else silent, team)


def _train(
    listed: ImageList, folder: Path, settings: ImageTrainSettings, resume: bool, progress: Progress, team: Team
) -> Bundle:
    truths = listed.truths
    missing = [task for task in settings.tasks if task not in truths.tasks]
    if missing:
        text = f"No image has a truth for {', '.join(missing)}."
        raise InputRefused("no-training-cases", text, "Leave the task out with --tasks, or add masks or labels.")
    training, validation = listed.cases, listed.cases[:0]
    if settings.fold is not None and listed.folds:
        training, validation = listed.fold(settings.fold)
    check_share(settings, team)
    run_folder.check_folder(folder, resume)
    team.gather(None)  # nobody writes before everybody has looked
    folder.mkdir(parents=True, exist_ok=True)
    shapes = _anchor_shapes(training, settings.patch) if "detection" in settings.tasks else []
    config = run_folder.describe(listed, settings, shapes, dict(listed.skipped))
    if resume:
        run_folder.compare(folder, config, ImageTrainSettings)
    trainer = Trainer(settings, shapes, team, **_parts(settings, listed, shapes))
    if resume and (folder / CHECKPOINT).is_file():
        load_checkpoint(trainer, folder / CHECKPOINT)
    if team.leads:
        if not resume:
            run_folder.write_description(folder, config)
        run_folder.note_session(folder, trainer.steps, team, trainer.device)
    inference = ImageSettings(settings.patch, settings.channels, truths, anchor_shapes=shapes)

    def measure() -> dict[str, float]:
        """The figures of the validation images; each process measures all of them, so that all agree."""
        figures, _ = evaluate_images(trainer.averaged_network.eval(), inference, validation, trainer.device)
        return {name: round(value, 4) for name, value in figures.items()}

    run_steps(trainer, ImageBatches(training, truths, settings), measure if validation else None, folder, progress)
    if team.leads:
        _write_bundle(trainer, inference, listed, training, folder)
    team.gather(None)  # the bundle is whole before anybody opens it
    return read_bundle(folder / BUNDLE)


def _parts(settings: ImageTrainSettings, listed: ImageList, shapes: Sequence[Sequence[float]]) -> Mapping[str, Any]:
    """The network and the loss."""
    truths, family = listed.truths, find_family(settings.network_family)
    torch.manual_seed(settings.seed)
    network = family.for_images(
        settings.feature_size,
        settings.tasks,
        max(1, len(shapes)),
        settings.patch,
        settings.channels,
        truths.channels,
        len(truths.labels),
        settings.network_options,
    )
    weights = [settings.label_weights.get(name, 1.0) for name in truths.labels]
    loss = family.make_loss(
        settings.tasks,
        shapes,
        region_activation=truths.region_activation,
        label_activation=truths.label_activation,
        label_weights=weights if settings.label_weights and truths.label_activation == "sigmoid" else (),
        focal=settings.focal,
    )
    return {"network": network, "loss": loss}


def _anchor_shapes(cases: Sequence[ImageCase], side: int) -> list[list[float]]:
    """Anchors fitted to the boxes of the cases in pixels of the square."""
    sizes = []
    for case in cases:
        if case.boxes:
            columns, rows = image_size(case.image)
            sizes += [((x1 - x0) * side / columns, (y1 - y0) * side / rows) for x0, y0, x1, y1 in case.boxes]
    if len(sizes) < 2 * ANCHORS:
        return [list(shape) for shape in FALLBACK_ANCHORS]
    return fit_anchor_shapes(sizes, count=ANCHORS)


def _write_bundle(
    trainer: Trainer, inference: ImageSettings, listed: ImageList, cases: Sequence[ImageCase], folder: Path
) -> None:
    truths = listed.truths
    write_bundle(
        folder,
        trainer.averaged_network,
        trainer.settings,
        inference,
        learned=of_list(listed, cases, "images"),
        more=f"; {trainer.steps} steps; regions: {', '.join(truths.regions) or 'none'}; labels: "
        f"{', '.join(truths.labels) or 'none'}.",
        trained_on=f"{len(cases)} labelled images of a local list",
    )
