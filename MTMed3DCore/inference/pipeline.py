"""The whole analysis of one study: prepare, run, bring back, measure."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import MTMed3DCore
from MTMed3DCore.bundles.calibration import (
    LesionCalibration,
    entropy_limit,
    grade_calibration,
    grade_line,
    lesion_calibration,
)
from MTMed3DCore.bundles.card import card_summary
from MTMed3DCore.domain.check import notices as domain_notices
from MTMed3DCore.domain.study import check_study
from MTMed3DCore.errors import OutOfResources, WrongUse
from MTMed3DCore.findings import Findings, Grade, Lesion
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.computing import compute
from MTMed3DCore.inference.devices import choose_device
from MTMed3DCore.inference.ladder import short_of_memory
from MTMed3DCore.inference.lesions import find_lesions
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.measurements import compare, midplane
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation import PreparedStudy, prepare, to_native
from MTMed3DCore.progress import Progress, silent

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.inference.windows import RawResult
    from MTMed3DCore.preparation.record import PreparationRecord
    from MTMed3DCore.study import Study

MODES = ("exact", "lean", "quick")


def analyze(
    study: Study,
    model: str | Path | Bundle = "starter",
    device: str = "auto",
    precision: str = "auto",
    progress: Progress | None = None,
    *,
    network: Any = None,
    read_s: float = 0.0,
    mask: npt.NDArray[np.bool_] | None = None,
    preparation: PreparationRecord | None = None,
    prior: Findings | None = None,
    mode: str = "exact",
    check_uncertainty: bool = False,
    compiled: bool = False,
) -> Findings:
    """Find, outline and grade the tumours of a study.

    Args:
        study: four sequences on the T1ce grid.
        model: name or folder of a bundle, or the bundle.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"`` (bf16 on a GPU that has it, else fp32; but see `mode`), ``"fp32"`` or ``"bf16"``.
        progress: told of every step; may raise `Cancelled`.
        network: the bundle's network where a caller keeps it loaded on the chosen device; loaded here otherwise.
        read_s: seconds that reading the study took, for the record.
        mask: a brain mask (X, Y, Z) on the T1ce grid in place of one found here.
        preparation: an earlier preparation of the same study, to be used again; see
            `MTMed3DCore.preparation.record.read_preparation`.
        prior: findings of an earlier study of the same patient, to be compared with.
        mode: ``"exact"`` computes everything, in the windows that the model was trained with. ``"lean"`` leaves out the
            segmentation of windows in which a glance at half the resolution and the boxes see nothing; for models of
            many windows, with nearly the same regions (``docs/speed.md`` says how near). ``"quick"`` encodes the
            brain in one pass, segments only where a glance at half the resolution, or a box, gives reason to, and on a
            CPU computes in bf16 where that was measured to pay.
        check_uncertainty: segment the mirror image of the study too, and warn where both do not agree; takes about
            as long again as the segmentation itself.
        compiled: have torch compile the network, for ``"exact"``: minutes at first, for whoever analyses many studies;
            see `MTMed3DCore.inference.compiled`. Where that fails, a notice says so and the network is used as it is.

    Returns:
        Findings on the T1ce grid as it came in; ``timing_s["write"]`` is 0 until they are written.

    Raises:
        InputRefused: no brain is to be seen.
        ModelRefused: no such model, a damaged one, or outputs that are not finite.
        OutOfResources: memory does not suffice, also on the CPU where the device was left to choose.
        WrongUse: an unknown or absent device, an unknown precision or mode.
    """
    from MTMed3DCore.bundles import Bundle, find_bundle

    if mode not in MODES:
        raise WrongUse("mode-unknown", f"There is no mode {mode!r}.", f"Use one of {', '.join(MODES)}.")
    progress = progress or silent
    began = time.perf_counter()
    bundle = model if isinstance(model, Bundle) else find_bundle(model)
    settings = bundle.settings
    target = choose_device(device)
    notices = list(study.warnings)
    if settings.channel_order_assumed:
        order = ", ".join(settings.channel_order)
        notices.append(
            Notice("channel-order-assumed", f"Nobody stated the model's channel order; {order} was assumed.")
        )
    with _memory_refusals():
        prepared = prepare(
            study,
            spacing_mm=settings.spacing_mm,
            normalisation=settings.normalisation,
            progress=progress,
            mask=mask,
            earlier=preparation,
        )
    notices.extend(prepared.warnings)
    prepared_at = time.perf_counter()
    with _memory_refusals():
        computed = compute(
            bundle,
            network,
            prepared,
            target,
            precision,
            progress,
            may_leave=device == "auto",
            mode=mode,
            check_uncertainty=check_uncertainty,
            compiled=compiled and mode == "exact",  # a glance has another size in every study
        )
        raw = computed.raw
        notices.extend(computed.notices)
        labels, lesions, lesion_notices = _measure(raw, prepared, settings)
        checks = check_study(
            study,
            prepared,
            raw.regions,
            settings.whole_tumour_threshold,
            entropy_limit(bundle.metadata),
            computed.differing,
        )
    finished = time.perf_counter()
    grade = None
    if raw.hgg_probability is not None and labels.any():
        label = "HGG" if raw.hgg_probability >= 0.5 else "LGG"
        said = grade_calibration(bundle.metadata)
        grade = Grade(label, grade_line(said)(raw.hgg_probability), calibration=said)
    scored = lesion_calibration(bundle.metadata)
    findings = Findings(
        study_id=_as_unicode(study.id),
        sources={name: _as_unicode(str(path)) for name, path in study.sources.items()},
        grid=study.grid,
        labels=labels,
        lesions=_with_probabilities(lesions, scored),
        grade=grade,
        model=bundle.identity,
        warnings=(*notices, *domain_notices(checks), *lesion_notices),
        timing_s={
            "read": read_s,
            "prepare": prepared_at - began,
            "infer": finished - prepared_at,
            "write": 0.0,
            "total": read_s + finished - began,
        },
        software={
            "mtmed3d": MTMed3DCore.__version__,
            "torch": version("torch"),
            "monai": version("monai"),
            "python": platform.python_version(),
            "device": computed.device,
            "precision": computed.precision,
            "mode": mode,
        },
        study=study,
        preparation=prepared.record,
        model_card=card_summary(bundle.folder, bundle.metadata),
        domain=checks,
        lesion_calibration=None if scored is None else scored.said,
    )
    return findings if prior is None else replace(findings, comparison=compare(findings, prior))


def native_boxes(boxes: npt.NDArray[np.floating[Any]], prepared: PreparedStudy) -> list[VoxelBox]:
    """Boxes (N, 6) of the working grid as voxel boxes of the native grid."""
    return [VoxelBox.from_list(box).to_world(prepared.grid).to_voxel(prepared.native) for box in boxes.tolist()]


def _measure(raw: RawResult, prepared: PreparedStudy, settings: InferenceSettings) -> Sequence[Any]:
    """Labels, lesions and notices on the native grid."""
    brain = None if prepared.record is None else prepared.record.brain
    found = find_lesions(
        to_native(prepared, raw.regions),
        native_boxes(raw.boxes, prepared),
        raw.scores.tolist(),
        prepared.native,
        settings,
        detects=raw.detects,
        plane=None if brain is None else midplane(brain, prepared.native),
    )
    return found.labels, found.lesions, found.notices


def _with_probabilities(lesions: Sequence[Lesion], calibration: LesionCalibration | None) -> tuple[Lesion, ...]:
    """Lesions with the probability that the model's calibration gives their scores."""
    if calibration is None:
        return tuple(lesions)
    return tuple(replace(each, probability=calibration.lines[each.origin](each.score)) for each in lesions)


@contextmanager
def _memory_refusals() -> Iterator[None]:
    """Every way in which numpy, torch and the devices say that memory is short, as one refusal."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not short_of_memory(error):
            raise
        raise OutOfResources(
            "memory",
            "The memory does not suffice to analyse this study.",
            "Close other programs, use --device cpu, or choose a model with a smaller window.",
        ) from error


def _as_unicode(name: str) -> str:
    """A name for documents; bytes of a file name that are no Unicode become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")
