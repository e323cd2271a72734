"""Training on a data list: from labelled studies to a bundle, resumable at any step.

::

    RUN/config.json        settings, hash of the list, anchors, versions
    RUN/history.jsonl      one row a step: losses, task weights, learning rate
    RUN/validation.jsonl   one row a validation
    RUN/curves.png         both as a picture
    RUN/checkpoint.pt      the latest state of the run
    RUN/bundle/            the finished model
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

import MTMed3DCore
from MTMed3DCore.allocator import keep_freed_memory
from MTMed3DCore.bundles import Bundle, save_bundle
from MTMed3DCore.datalist import Case, DataList
from MTMed3DCore.errors import InputRefused, WrongUse
from MTMed3DCore.evaluation.overlap import dice
from MTMed3DCore.inference import InferenceSettings, run_network
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.training.anchors import fit_anchor_shapes
from MTMed3DCore.training.checkpoint import load_checkpoint, save_checkpoint
from MTMed3DCore.training.curves import draw_curves
from MTMed3DCore.training.examples import ExampleCache, prepare_case
from MTMed3DCore.training.feeding import CasePatches, loader_from
from MTMed3DCore.training.patches import region_channels
from MTMed3DCore.training.settings import CaseSettings
from MTMed3DCore.training.trainer import Trainer

CONFIG, HISTORY, VALIDATION, CHECKPOINT, BUNDLE = (
    "config.json",
    "history.jsonl",
    "validation.jsonl",
    "checkpoint.pt",
    "bundle",
)
ANCHORS = 5
FEWEST_BOXES = 5
"""From as many boxes on, anchors are fitted to them; below, the published shapes serve."""


def train(
    listed: DataList,
    folder: Path,
    settings: CaseSettings,
    *,
    cache: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Train on the cases of a list.

    Args:
        listed: with labels for the tasks that are trained.
        folder: of the run; new, or with `resume` one that was interrupted.
        settings: of the run; a resumed run must have the same.
        cache: folder for prepared studies; inside the run's where None.
        resume: go on where the folder's checkpoint stands.
        progress: told as stages ``prepare`` and ``train``, step by step, and may cancel there; a cancelled run can be
            resumed.

    Raises:
        InputRefused: ``no-training-cases``, ``checkpoint-damaged``.
        WrongUse: ``run-exists``, ``run-missing``, ``run-differs``, ``fold-unknown``.
    """
    training, validation = _split(listed, settings)
    _check_folder(folder, resume)
    store = ExampleCache(cache or folder / "cache", settings.spacing_mm)
    refused = store.fill([*training, *validation], max(1, settings.workers), progress)
    training = [case for case in training if case.id not in refused]
    validation = [case for case in validation if case.id not in refused]
    _refuse_without_truth(training, settings)
    shapes = _anchor_shapes(training, store)
    config = _config(listed, settings, shapes, refused)
    _write_or_compare(folder / CONFIG, config, resume)
    keep_freed_memory()
    trainer = Trainer(settings, shapes)
    if resume and (folder / CHECKPOINT).is_file():
        load_checkpoint(trainer, folder / CHECKPOINT)
    inference = InferenceSettings(
        spacing_mm=settings.spacing_mm,
        window=settings.wide_patch,
        anchor_shapes=shapes,
        grading_crop=settings.patch,
    )
    _cut_rows(folder / HISTORY, trainer.steps)
    _cut_rows(folder / VALIDATION, trainer.steps)
    patches = iter(loader_from(CasePatches(training, store, settings), trainer.steps))
    with (folder / HISTORY).open("a") as history, (folder / VALIDATION).open("a") as validations:
        while trainer.steps < settings.steps:
            losses = trainer.step(list(islice(patches, settings.batch)), trainer.steps / settings.steps)
            row: dict[str, Any] = {"step": trainer.steps, **{task: round(v, 6) for task, v in losses.items()}}
            row["weights"] = [round(float(w), 4) for w in trainer.balance.weights.detach()]
            history.write(json.dumps(row) + "\n")
            history.flush()
            last = trainer.steps == settings.steps
            if validation and (last or (settings.validate_every and trainer.steps % settings.validate_every == 0)):
                figures = validate(trainer, validation, inference)
                validations.write(json.dumps({"step": trainer.steps, **figures}) + "\n")
                validations.flush()
            if last or trainer.steps % settings.save_every == 0:
                save_checkpoint(trainer, folder / CHECKPOINT)
                draw_curves(folder / HISTORY, folder / VALIDATION, settings.tasks, folder / "curves.png")
            told = ", ".join(f"{task} {value:.3f}" for task, value in losses.items())
            progress("train", trainer.steps / settings.steps, f"Step {trainer.steps} of {settings.steps}: {told}")
    return _write_bundle(trainer, inference, listed, training, folder)


def validate(trainer: Trainer, cases: Sequence[Case], inference: InferenceSettings) -> dict[str, float]:
    """Mean Dice on the working grid and share of right grades of the averaged network; whole studies."""
    network = trainer.averaged_network.eval()
    rows, right, graded = [], 0, 0
    with torch.inference_mode():
        for case in cases:
            example, prepared = prepare_case(case, inference.spacing_mm, inference.normalisation)
            raw = run_network(network, prepared, inference, trainer.device)
            if example.labels is not None:
                truth = region_channels(example.labels).numpy() > 0
                found = raw.regions >= inference.region_threshold
                rows.append([dice(f, t) for f, t in zip(found, truth, strict=True)])
            if example.grade is not None and raw.hgg_probability is not None:
                graded += 1
                right += (raw.hgg_probability >= 0.5) == bool(example.grade)
    figures: dict[str, float] = {}
    if rows:
        core, whole, enhancing = np.mean(rows, axis=0).tolist()
        figures |= {"whole_tumour": whole, "tumour_core": core, "enhancing": enhancing}
    if graded:
        figures["grade_right"] = right / graded
    return {name: round(value, 4) for name, value in figures.items()}


def _split(listed: DataList, settings: CaseSettings) -> tuple[list[Case], list[Case]]:
    if settings.fold is None or listed.folds == 0:
        return list(listed.cases), []
    training, validation = listed.fold(settings.fold)
    return list(training), list(validation)


def _refuse_without_truth(cases: Sequence[Case], settings: CaseSettings) -> None:
    known = {
        "segmentation": any(case.label is not None for case in cases),
        "detection": any(case.boxes for case in cases),
        "grading": any(case.grade is not None for case in cases),
    }
    missing = [task for task in settings.tasks if not known[task]]
    if missing:
        text = f"No training case has a truth for {', '.join(missing)}."
        raise InputRefused("no-training-cases", text, "Leave the task out with --tasks, or add labels or grades.")


def _check_folder(folder: Path, resume: bool) -> None:
    there = (folder / CONFIG).is_file()
    if resume and not there:
        raise WrongUse("run-missing", f"{folder} holds no run to resume.", "Leave --resume out to start one.")
    if not resume and folder.exists() and any(folder.iterdir()):
        text = f"{folder} is not empty."
        raise WrongUse("run-exists", text, "Give --resume to go on, or another folder to start anew.")
    folder.mkdir(parents=True, exist_ok=True)


def _anchor_shapes(cases: Sequence[Case], store: ExampleCache) -> list[list[float]]:
    sizes = [box.size / store.spacing_mm for case in cases for box in (case.boxes or ())]
    if len(sizes) < FEWEST_BOXES:
        published = InferenceSettings().anchor_shapes
        return [[float(side) / store.spacing_mm for side in shape] for shape in published]
    return fit_anchor_shapes(sizes, count=ANCHORS)


def _config(
    listed: DataList, settings: CaseSettings, shapes: list[list[float]], refused: dict[str, str]
) -> dict[str, Any]:
    versions = {"mtmed3d": MTMed3DCore.__version__, "torch": torch.__version__, "monai": monai.__version__}
    return {
        "settings": settings.to_dict(),
        "list_sha256": listed.sha256,
        "cases": len(listed.cases),
        "refused": refused,
        "anchor_shapes": shapes,
        "versions": {**versions, "python": platform.python_version()},
    }


def _write_or_compare(path: Path, config: dict[str, Any], resume: bool) -> None:
    """Keep the run's description; a resumed run must be the same one."""
    if resume:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        for name in ("settings", "list_sha256", "anchor_shapes"):
            if earlier[name] != json.loads(json.dumps(config[name])):
                raise WrongUse("run-differs", f"{path} has another {name}.", "Resume with what the run began with.")
        return
    path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _cut_rows(path: Path, steps: int) -> None:
    """Drop the rows that were written after the checkpoint from which the run goes on."""
    if path.is_file():
        rows = [row for row in path.read_text(encoding="utf-8").splitlines() if _step_of(row) <= steps]
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def _step_of(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError):  # the last row of a run that was killed may be half a row
        return float("inf")


def _write_bundle(
    trainer: Trainer, inference: InferenceSettings, listed: DataList, cases: Sequence[Case], folder: Path
) -> Bundle:
    settings = trainer.settings
    graded = sum(case.grade is not None for case in cases)
    card = (
        f"# {folder.name}\n\n**For research use only.** Trained with MTMed3D {MTMed3DCore.__version__} on {len(cases)} "
        f"studies of a data list (SHA-256 {listed.sha256[:12] or 'unknown'}), {graded} of them graded; tasks: "
        f"{', '.join(settings.tasks)}; {trainer.steps} steps of {settings.batch} patches of {settings.patch} voxels at "
        f"{settings.spacing_mm:g} mm.\n"
    )
    return save_bundle(
        folder / BUNDLE,
        trainer.averaged_network.cpu().eval(),
        inference,
        name=folder.name,
        version="1.0.0",
        trained_on=f"{len(cases)} labelled studies of a local data list",
        card=card,
        overwrite=True,
    )
