"""Training on a data list: from labelled studies to a bundle, resumable at any step, on any number of processes.

What the folder of a run holds is told in `MTMed3DCore.training.run_folder`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.allocator import keep_freed_memory
from MTMed3DCore.bundles import Bundle, read_bundle
from MTMed3DCore.datalist import Case, DataList
from MTMed3DCore.errors import InputRefused
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.training import run_folder
from MTMed3DCore.training.anchors import fit_anchor_shapes
from MTMed3DCore.training.board import Board
from MTMed3DCore.training.checkpoint import load_checkpoint, save_checkpoint
from MTMed3DCore.training.curves import draw_curves
from MTMed3DCore.training.distributed import Team, join_team
from MTMed3DCore.training.examples import ExampleCache
from MTMed3DCore.training.feeding import CasePatches, check_share, loader_from, trains
from MTMed3DCore.training.finished import of_list, write_bundle
from MTMed3DCore.training.run_folder import BOARD, BUNDLE, CHECKPOINT, CURVES, HISTORY, IDLE, VALIDATION
from MTMed3DCore.training.settings import CaseSettings
from MTMed3DCore.training.trainer import Trainer
from MTMed3DCore.training.validation import validate
from MTMed3DCore.training.warm_start import start_encoder

if TYPE_CHECKING:
    from MTMed3DCore.images2d.feeding import ImageBatches

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

    Under ``torchrun`` every process calls this with the same arguments and takes its share of each batch; the first
    one writes. Folder and cache must then be the same for all of them.

    Args:
        listed: with labels for the tasks that are trained.
        folder: of the run; new, or with `resume` one that was interrupted.
        settings: of the run; a resumed run must have the same, but for those in `run_folder.CHANGEABLE`.
        cache: folder for prepared studies; inside the run's where None.
        resume: go on where the folder's checkpoint stands.
        progress: told as stages ``prepare`` and ``train``, step by step, and may cancel there; a cancelled run can be
            resumed.

    Raises:
        InputRefused: ``no-training-cases``, ``checkpoint-damaged``.
        ModelRefused: ``encoder-weights``.
        WrongUse: ``run-exists``, ``run-missing``, ``run-differs``, ``fold-unknown``, ``batch-share``,
            ``training-diverged``.
    """
    with join_team(settings.device) as team:
        told = progress if team.leads else silent
        return _train(listed, folder, settings, cache or folder / run_folder.CACHE, resume, told, team)


def _train(
    listed: DataList,
    folder: Path,
    settings: CaseSettings,
    cache: Path,
    resume: bool,
    progress: Progress,
    team: Team,
) -> Bundle:
    training, validation = _split(listed, settings)
    check_share(settings, team)
    run_folder.check_folder(folder, resume)
    team.gather(None)  # nobody writes before everybody has looked
    folder.mkdir(parents=True, exist_ok=True)
    store = ExampleCache(cache, settings.spacing_mm)
    mine = store.fill(team.share([*training, *validation]), max(1, settings.workers), progress)
    refused = {case: reason for part in team.gather(mine) for case, reason in part.items()}
    validation = [case for case in validation if case.id not in refused]
    training, idle = _dealt([case for case in training if case.id not in refused], store, settings, team)
    _refuse_without_truth(training, settings)
    if idle:
        text = f"{len(idle)} of {len(training) + len(idle)} training studies train nothing"
        progress("prepare", 1.0, f"{text}: {run_folder.names_of(case.id for case in idle)}")
    studies = _digests({"training": training, "validation": validation, IDLE: idle}, settings, team)
    shapes = team.gather(_anchor_shapes(training, store))[0]
    config = run_folder.describe(listed, settings, shapes, refused, studies)
    if resume:
        run_folder.compare(folder, config)
    keep_freed_memory()
    trainer = Trainer(settings, shapes, team)
    if resume and (folder / CHECKPOINT).is_file():
        load_checkpoint(trainer, folder / CHECKPOINT)
    elif settings.encoder_weights:
        started = start_encoder(trainer.network.encoder, Path(settings.encoder_weights))
        config["warm_start"] = {"sha256": started.sha256, "text": str(started)}
        progress("train", 0.0, str(started))
    if team.leads:
        if not resume:
            run_folder.write_description(folder, config)
        run_folder.note_session(folder, trainer.steps, team, trainer.device, settings)
    inference = InferenceSettings(
        spacing_mm=settings.spacing_mm,
        window=settings.wide_patch,
        anchor_shapes=shapes,
        grading_crop=settings.patch,
    )

    def measure() -> dict[str, float]:
        return validate(trainer, validation, store, inference, team)

    cases = CasePatches(training, store, settings)
    run_steps(trainer, cases, measure if validation else None, folder, progress)
    if team.leads:
        _write_bundle(trainer, inference, listed, training, folder)
    team.gather(None)  # the bundle is whole before anybody opens it
    return read_bundle(folder / BUNDLE)


def run_steps(
    trainer: Trainer,
    cases: CasePatches | ImageBatches,
    measure: Callable[[], dict[str, float]] | None,
    folder: Path,
    progress: Progress,
) -> None:
    """From the trainer's step to the last one.

    Args:
        trainer: as it stands.
        cases: what it is trained on.
        measure: validates the averaged network, in every process; None where nothing is held out.
        folder: of the run.
        progress: told as stage ``train``.
    """
    settings, team = cases.settings, trainer.team
    if team.leads:
        for name in (HISTORY, VALIDATION):
            run_folder.cut_rows(folder / name, trainer.steps)
    patches = iter(loader_from(cases, trainer.steps, team))
    with Board(folder / BOARD, trainer.steps, team.leads) as board:
        while trainer.steps < settings.steps:
            share = list(islice(patches, settings.batch // team.size))
            losses = trainer.step(share, trainer.steps / settings.steps)
            step = trainer.steps
            weights = dict(zip(settings.tasks, trainer.balance.weights.detach().tolist(), strict=True))
            last = step == settings.steps
            figures: dict[str, float] = {}
            if measure is not None and (last or (settings.validate_every and step % settings.validate_every == 0)):
                figures = measure()
            if not team.leads:
                continue
            row: dict[str, Any] = {"step": step, **{task: round(value, 6) for task, value in losses.items()}}
            _add_row(folder / HISTORY, {**row, "weights": [round(weight, 4) for weight in weights.values()]})
            if figures:
                _add_row(folder / VALIDATION, {"step": step, **figures})
            for group, values in (("loss", losses), ("task_weight", weights), ("validation", figures)):
                board.write(group, values, step)
            if last or step % settings.save_every == 0:
                save_checkpoint(trainer, folder / CHECKPOINT)
                draw_curves(folder / HISTORY, folder / VALIDATION, settings.tasks, folder / CURVES)
            told = ", ".join(f"{task} {value:.3f}" for task, value in losses.items())
            progress("train", step / settings.steps, f"Step {step} of {settings.steps}: {told}")


def _add_row(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def _split(listed: DataList, settings: CaseSettings) -> tuple[list[Case], list[Case]]:
    if settings.fold is None:
        return list(listed.cases), []
    training, validation = listed.fold(settings.fold)
    return list(training), list(validation)


def _dealt(
    cases: Sequence[Case], store: ExampleCache, settings: CaseSettings, team: Team
) -> tuple[list[Case], list[Case]]:
    """The cases that can train something, and the others, from which a patch would be an empty step."""
    mine = [case.id for case in team.share(cases) if trains(case, store, settings)]
    able = {case for part in team.gather(mine) for case in part}
    return [case for case in cases if case.id in able], [case for case in cases if case.id not in able]


def _digests(uses: Mapping[str, Sequence[Case]], settings: CaseSettings, team: Team) -> dict[str, dict[str, str]]:
    """`run_folder.digest_of` the cases of every use; each process reads its share."""
    mine = team.share([case for cases in uses.values() for case in cases])
    with ThreadPoolExecutor(max(1, settings.workers)) as pool:
        known = dict(zip([case.id for case in mine], pool.map(run_folder.digest_of, mine), strict=True))
    everything = {case: digest for part in team.gather(known) for case, digest in part.items()}
    return {use: {case.id: everything[case.id] for case in cases} for use, cases in uses.items()}


def _refuse_without_truth(cases: Sequence[Case], settings: CaseSettings) -> None:
    known = {
        "segmentation": any(case.label is not None for case in cases),
        "detection": any(case.boxes for case in cases),
        "grading": any(case.grade is not None for case in cases),
    }
    missing = [task for task in settings.tasks if not known[task]]
    if missing:
        text = f"No training case has a truth for {', '.join(missing)}."
        remedy = (
            "Leave the task out with --tasks, or add labels or grades. With neither label map nor boxes, a grade "
            "counts only where a patch holds nearly the whole brain."
        )
        raise InputRefused("no-training-cases", text, remedy)


def _anchor_shapes(cases: Sequence[Case], store: ExampleCache) -> list[list[float]]:
    sizes = [box.size / store.spacing_mm for case in cases for box in (case.boxes or ())]
    if len(sizes) < FEWEST_BOXES:
        published = InferenceSettings().anchor_shapes
        return [[float(side) / store.spacing_mm for side in shape] for shape in published]
    return fit_anchor_shapes(sizes, count=ANCHORS)


def _write_bundle(
    trainer: Trainer, inference: InferenceSettings, listed: DataList, cases: Sequence[Case], folder: Path
) -> None:
    settings = trainer.settings
    graded = sum(case.grade is not None for case in cases)
    write_bundle(
        folder,
        trainer.averaged_network,
        settings,
        inference,
        learned=f"{of_list(listed, cases, 'studies')}, {graded} of them graded",
        more=f"; {trainer.steps} steps of {settings.batch} patches of {settings.patch} voxels at "
        f"{settings.spacing_mm:g} mm.",
        trained_on=f"{len(cases)} labelled studies of a local data list",
        trained_patients=[case.patient for case in cases],
    )
