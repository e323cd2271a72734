"""The authors' checkpoints: read without running code, and turned into a bundle."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.bundles.bundle import MAX_WEIGHTS_BYTES, Bundle
from MTMed3DCore.bundles.writing import save_bundle
from MTMed3DCore.errors import ModelRefused, WrongUse
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.sequences import SEQUENCES

if TYPE_CHECKING:
    import torch

    from MTMed3DCore.inference.settings import InferenceSettings
    from MTMed3DCore.networks import MultiTaskNetwork

PUBLISHED_REGION_THRESHOLD = 0.574442516
"""The authors threshold the logit at 0.3; this is its probability, sigmoid(0.3)."""


def published_settings(order: Sequence[str] | None = None) -> InferenceSettings:
    """How the authors apply their network (arXiv 2511.12373 and its code): 96 voxels of 1 mm.

    Args:
        order: the four input channels, a permutation of `SEQUENCES`. The authors nowhere state theirs; None assumes
            `SEQUENCES` and records that it was assumed.

    Raises:
        WrongUse: not each of the four sequences once.
    """
    from MTMed3DCore.inference.settings import InferenceSettings

    if order is not None and sorted(order) != sorted(SEQUENCES):
        text = f"The channel order {','.join(order)!r} does not name each sequence once."
        raise WrongUse("channel-order", text, f"Give a permutation of {','.join(SEQUENCES)}.")
    return InferenceSettings(
        channel_order=SEQUENCES if order is None else tuple(order),
        channel_order_assumed=order is None,
        spacing_mm=1.0,
        window=96,
        normalisation="zscore_nonzero",
        region_thresholds=(PUBLISHED_REGION_THRESHOLD,) * 3,
        anchor_shapes=((45, 58, 52), (40, 65, 58), (42, 58, 55), (30, 60, 40), (70, 70, 60)),
        anchor_scales=(2, 4, 8, 16),
        score_threshold=0.02,
        nms_iou=0.22,
        max_detections=1,
        grading_crop=96,
    )


def network_from_published(state_dict: Mapping[str, torch.Tensor]) -> MultiTaskNetwork:
    """The authors' tensors -> our network in evaluation mode; see `MTMed3DCore.networks.published`.

    Raises:
        ModelRefused: a tensor is missing, unknown or of another shape or type; the text names it.
    """
    from MTMed3DCore.networks.published import network_from_published as build

    return build(state_dict)


def import_published(
    file: str | Path,
    folder: str | Path,
    order: Sequence[str] | None = None,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Turn a checkpoint of the authors' training code into a bundle.

    Args:
        file: ``.pt``, ``.pth`` or ``.safetensors``: a bare state dict, or a dictionary that holds it as ``state_dict``.
        folder: of the new bundle.
        order: the checkpoint's input channels; None assumes `SEQUENCES`, and the bundle says so.
        name: of the bundle; the folder's name where None.
        overwrite: replace a bundle that lies there.

    Raises:
        ModelRefused: the file is missing, too large, would have to run code, or its tensors do not fit.
        WrongUse: a bad order or name, or a folder that exists.
    """
    source, target = Path(file).expanduser(), Path(folder).expanduser().absolute()
    settings = published_settings(order)
    if target.exists() and not overwrite:
        raise WrongUse("output-exists", f"{target} exists.", "Choose another folder, or ask for it to be replaced.")
    network = network_from_published(read_checkpoint(source))
    return save_bundle(
        target,
        network,
        settings,
        name=name or target.name,
        version="1.0.0",
        trained_on=f"unknown to this package: imported from {source.name}",
        card=_card(source, settings),
        overwrite=overwrite,
    )


def read_checkpoint(file: Path) -> Mapping[str, Any]:
    """The state dict of a checkpoint; pickled code in it is refused, never run.

    Raises:
        ModelRefused: missing, too large, unreadable, or no state dict.
    """
    if not file.is_file():
        raise ModelRefused("checkpoint-missing", f"There is no file {file}.", "Give the path of the checkpoint.")
    size = file.stat().st_size
    if size > MAX_WEIGHTS_BYTES:
        raise ModelRefused("weights-too-large", f"{file} has {size} bytes; at most {MAX_WEIGHTS_BYTES} are loaded.")
    content = _read_tensors(file)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content or not all(isinstance(key, str) for key in content):
        text = f"{file} holds a {type(content).__name__} that is no state dict."
        raise ModelRefused("checkpoint-content", text, "Save it with torch.save(network.state_dict(), file).")
    return content


def _read_tensors(file: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = f"{file} holds more than tensors, and opening it would run code from it."
        raise ModelRefused(
            "checkpoint-code", text, "Where it came from, save the state dict alone: torch.save(network.state_dict())."
        ) from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelRefused("checkpoint-unreadable", f"{file} is no readable checkpoint: {reason}.") from error


def _card(source: Path, settings: InferenceSettings) -> str:
    how = "ASSUMED, because it was not given" if settings.channel_order_assumed else "as given at the import"
    return f"""# Imported checkpoint

A checkpoint of the published MTMed3D network (Li, Iyengar, Xu; arXiv 2511.12373), imported from `{source.name}`
(SHA-256 {file_sha256(source)}).

- Input channels: {", ".join(settings.channel_order)}: {how}. The authors do not state theirs; a wrong order gives wrong
  results without any error.
- What it was trained on, and how well it does, is known to whoever trained it. Nothing here has measured it.
- For research use only. Not a medical device.
"""
