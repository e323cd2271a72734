"""The whole analysis of one study: prepare, run, bring back, measure."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import monai
import numpy as np
import numpy.typing as npt
import torch

import MTMed3DCore
from MTMed3DCore.bundles.card import card_summary
from MTMed3DCore.errors import OutOfResources, WrongUse
from MTMed3DCore.findings import Findings, Grade, Notice
from MTMed3DCore.geometry import VoxelBox
from MTMed3DCore.inference.lesions import find_lesions
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.inference.windows import RawResult, run_network
from MTMed3DCore.measurements import compare, midplane
from MTMed3DCore.preparation import PreparedStudy, prepare, to_native
from MTMed3DCore.progress import Progress, silent

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.preparation.record import PreparationRecord
    from MTMed3DCore.study import Study

PRECISIONS = ("auto", "fp32", "bf16")


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
) -> Findings:
    """Find, outline and grade the tumours of a study.

    Args:
        study: four sequences on the T1ce grid.
        model: name or folder of a bundle, or the bundle.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"`` (bf16 on a GPU that has it, else fp32), ``"fp32"`` or ``"bf16"``.
        progress: told of every step; may raise `Cancelled`.
        network: the bundle's network where a caller keeps it loaded on the chosen device; loaded here otherwise.
        read_s: seconds that reading the study took, for the record.
        mask: a brain mask (X, Y, Z) on the T1ce grid in place of one found here.
        preparation: an earlier preparation of the same study, to be used again; see
            `MTMed3DCore.preparation.record.read_preparation`.
        prior: findings of an earlier study of the same patient, to be compared with.

    Returns:
        Findings on the T1ce grid as it came in; ``timing_s["write"]`` is 0 until they are written.

    Raises:
        InputRefused: no brain is to be seen.
        ModelRefused: no such model, a damaged one, or outputs that are not finite.
        OutOfResources: memory does not suffice, also on the CPU where the device was left to choose.
        WrongUse: an unknown or absent device, or an unknown precision.
    """
    from MTMed3DCore.bundles import Bundle, find_bundle

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
    chosen = choose_precision(precision, target)
    with _memory_refusals():
        try:
            network = network if network is not None else bundle.load(target)
            raw = run_network(network, prepared, settings, target, chosen, progress)
        except torch.OutOfMemoryError:
            if device != "auto" or target.type == "cpu":
                raise
            notices.append(Notice("device-fallback", f"The memory of {target} did not suffice; the CPU was used."))
            network = None
            target = torch.device("cpu")
            chosen = choose_precision(precision, target)
            raw = run_network(bundle.load(target), prepared, settings, target, chosen, progress)
        labels, lesions, lesion_notices = _measure(raw, prepared, settings)
    finished = time.perf_counter()
    grade = None
    if raw.hgg_probability is not None and labels.any():
        grade = Grade("HGG" if raw.hgg_probability >= 0.5 else "LGG", raw.hgg_probability)
    findings = Findings(
        study_id=study.id,
        sources={name: str(path) for name, path in study.sources.items()},
        grid=study.grid,
        labels=labels,
        lesions=lesions,
        grade=grade,
        model=bundle.identity,
        warnings=(*notices, *lesion_notices),
        timing_s={
            "read": read_s,
            "prepare": prepared_at - began,
            "infer": finished - prepared_at,
            "write": 0.0,
            "total": read_s + finished - began,
        },
        software={
            "mtmed3d": MTMed3DCore.__version__,
            "torch": torch.__version__,
            "monai": monai.__version__,
            "python": platform.python_version(),
            "device": str(target),
            "precision": chosen,
        },
        study=study,
        preparation=prepared.record,
        model_card=card_summary(bundle.folder, bundle.metadata),
    )
    return findings if prior is None else replace(findings, comparison=compare(findings, prior))


def choose_device(device: str = "auto") -> torch.device:
    """The device of a name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Raises:
        WrongUse: an unknown name, or a device that this machine lacks.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise WrongUse("device-unknown", f"There is no device {device!r}.", "Use auto, cpu, cuda, cuda:N or mps.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if has_cuda else 0, "mps": int(has_mps)}[kind]
    if int(number or 0) >= count:
        raise WrongUse("device-absent", f"This machine has no usable device {device!r}.", "Use --device auto or cpu.")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """``"fp32"`` or ``"bf16"``; ``"auto"`` is bf16 on CUDA devices that compute in it, else fp32.

    Raises:
        WrongUse: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise WrongUse(
            "precision-unknown", f"There is no precision {precision!r}.", f"Use one of {', '.join(PRECISIONS)}."
        )
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def native_boxes(boxes: npt.NDArray[np.floating[Any]], prepared: PreparedStudy) -> list[VoxelBox]:
    """Boxes (N, 6) of the working grid as voxel boxes of the native grid."""
    return [VoxelBox.from_list(box).to_world(prepared.grid).to_voxel(prepared.native) for box in boxes.tolist()]


def _measure(raw: RawResult, prepared: PreparedStudy, settings: InferenceSettings) -> Sequence[Any]:
    """Labels, lesions and notices on the native grid."""
    found = find_lesions(
        to_native(prepared, raw.regions),
        native_boxes(raw.boxes, prepared),
        raw.scores.tolist(),
        prepared.native,
        region_threshold=settings.region_threshold,
        minimum_lesion_ml=settings.minimum_lesion_ml,
        score_threshold=settings.score_threshold,
        detects=raw.detects,
        plane=None if prepared.record is None else midplane(prepared.record.brain, prepared.native),
    )
    return found.labels, found.lesions, found.notices


@contextmanager
def _memory_refusals() -> Iterator[None]:
    """Every way in which numpy, torch and the devices say that memory is short, as one refusal."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # The CPU allocator of torch and MPS raise plain RuntimeErrors.
        text = str(error).lower()
        short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
            phrase in text for phrase in ("out of memory", "not enough memory", "can't allocate memory")
        )
        if not short:
            raise
        raise OutOfResources(
            "memory",
            "The memory does not suffice to analyse this study.",
            "Close other programs, use --device cpu, or choose a model with a smaller window.",
        ) from error
