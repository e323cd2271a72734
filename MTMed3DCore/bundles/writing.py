"""Writing a bundle: complete or not at all."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore import __version__
from MTMed3DCore.bundles.bundle import (
    CARD,
    INFERENCE,
    METADATA,
    NAME_PATTERN,
    NETWORK_TARGET,
    WEIGHTS,
    Bundle,
    read_bundle,
)
from MTMed3DCore.bundles.manifest import write_manifest
from MTMed3DCore.bundles.provenance import KEY, patient_digests
from MTMed3DCore.errors import WrongUse
from MTMed3DCore.findings import RESEARCH_USE
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.networks.registry import find_family

if TYPE_CHECKING:
    import torch

    from MTMed3DCore.images2d.settings import ImageSettings
    from MTMed3DCore.inference.settings import InferenceSettings
    from MTMed3DCore.networks import TaskNetwork

METADATA_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_REQUIRED_PACKAGES = ("nibabel", "SimpleITK", "safetensors", "scipy")


def save_bundle(
    folder: str | Path,
    network: TaskNetwork,
    settings: InferenceSettings | ImageSettings,
    *,
    name: str,
    version: str,
    trained_on: str,
    card: str,
    trained_patients: Iterable[str] = (),
    half: bool = False,
    calibration: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a network and its settings as a bundle.

    Everything is written into a temporary folder beside `folder`, which is then renamed.

    Args:
        folder: of the new bundle; must not exist unless `overwrite`.
        network: its tensors and its `config` are stored.
        settings: how it is applied to a study or to an image.
        name: letters, digits, dot, dash and underscore.
        version: of the model.
        trained_on: one sentence, shown with every result.
        card: the model card as Markdown.
        trained_patients: ids of the real patients in the training; only hashes of them are stored, from which
            `Bundle.has_seen` tells one.
        half: store the tensors with two or more dimensions as fp16, and index tables in the smallest type that holds
            them, which halves the file. Biases, norms and running statistics stay fp32.
        calibration: keys of `MTMed3DCore.bundles.calibration`, for the metadata.
        overwrite: replace a bundle that lies there.

    Raises:
        WrongUse: a bad name, a folder that exists, or a weight beyond the range of fp16.
    """
    folder = Path(folder).expanduser().absolute()
    if not NAME_PATTERN.fullmatch(name):
        raise WrongUse(
            "bundle-name", f"{name!r} is no name of a bundle.", "Use letters, digits, dot, dash, underscore."
        )
    if folder.exists() and not overwrite:
        raise WrongUse("output-exists", f"{folder} exists.", "Choose another folder, or ask for it to be replaced.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _new_version(folder) as partial:
        for path in (METADATA, WEIGHTS, CARD):
            (partial / path).parent.mkdir(exist_ok=True)
        _write_weights(partial / WEIGHTS, network, half)
        _write_json(partial / INFERENCE, _inference(network, settings))
        metadata = _metadata(network, settings, name, version, trained_on, file_sha256(partial / WEIGHTS))
        if digests := patient_digests(trained_patients, metadata["mtmed3d"]["sha256"]):
            metadata["mtmed3d"][KEY] = digests
        metadata["mtmed3d"].update(calibration or {})
        _write_json(partial / METADATA, metadata)
        (partial / CARD).write_text(card, encoding="utf-8", newline="\n")
    return read_bundle(folder)


def record_calibration(folder: Path, calibration: Mapping[str, Any]) -> Bundle:
    """Put a calibration into the metadata of a bundle, in place of an earlier one.

    Args:
        folder: of the bundle; its weights and settings stay as they are.
        calibration: keys of `MTMed3DCore.bundles.calibration`.

    Raises:
        ModelRefused: no bundle, or a damaged one.
    """
    bundle = read_bundle(folder)
    metadata = {**bundle.metadata, "mtmed3d": {**bundle.metadata["mtmed3d"], **calibration}}
    with _new_version(bundle.folder) as partial:
        shutil.copytree(bundle.folder, partial, dirs_exist_ok=True)
        _write_json(partial / METADATA, metadata)
    return read_bundle(bundle.folder)


def rewrite_section(folder: Path, heading: str, text: str) -> Bundle:
    """Put a section into the model card of a bundle, in place of an earlier one of that heading.

    Args:
        folder: of the bundle; its weights and settings stay as they are.
        heading: of the section, a second-level heading of Markdown.
        text: its Markdown, without further second-level headings.

    Raises:
        ModelRefused: no bundle, or a damaged one.
    """
    bundle = read_bundle(folder)
    card = bundle.folder / CARD
    parts = re.split(r"(?m)^(?=## )", card.read_text(encoding="utf-8") if card.is_file() else f"# {bundle.name}\n")
    section = f"## {heading}\n\n{text.strip()}\n"
    old = [index for index, part in enumerate(parts) if part.startswith(f"## {heading}\n")]
    if old:
        parts[old[0]] = section
    else:
        parts.append(section)
    with _new_version(bundle.folder) as partial:
        shutil.copytree(bundle.folder, partial, dirs_exist_ok=True)
        (partial / CARD).parent.mkdir(exist_ok=True)
        whole = "\n\n".join(part.strip() for part in parts) + "\n"
        (partial / CARD).write_text(whole, encoding="utf-8", newline="\n")
    return read_bundle(bundle.folder)


@contextmanager
def _new_version(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes its place with a manifest once it is filled and reads well."""
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
        write_manifest(partial)
        read_bundle(partial)
        partial.chmod(0o755)  # mkdtemp makes it private; a bundle may be shared
        replace_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: Path, folder: Path) -> None:
    """Rename `partial` to `folder`; what lies there is removed after that, or put back should it fail."""
    if not folder.exists():
        partial.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-old-", dir=folder.parent))
    folder.rename(aside / folder.name)
    try:
        partial.rename(folder)
    except OSError:
        (aside / folder.name).rename(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_weights(path: Path, network: TaskNetwork, half: bool) -> None:
    from safetensors.torch import save_file

    tensors = network.state_dict()
    save_file({key: _stored(key, tensor, half) for key, tensor in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private; a bundle may be shared


def _stored(key: str, tensor: torch.Tensor, half: bool) -> torch.Tensor:
    import torch

    # A copy of its own for every tensor: safetensors refuses tensors that share memory.
    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    if not half or tensor.ndim < 2:
        return tensor
    if not tensor.is_floating_point():
        kinds = (torch.int16, torch.int32, torch.int64)
        return tensor.to(next(kind for kind in kinds if torch.equal(tensor.to(kind).to(tensor.dtype), tensor)))
    halved = tensor.half()
    if not torch.isfinite(halved).all():
        raise WrongUse("weights-range", f"{key} has values up to {tensor.abs().max():g}, beyond fp16.", "Store fp32.")
    return halved


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def _inference(network: TaskNetwork, settings: InferenceSettings | ImageSettings) -> dict[str, Any]:
    return {"network_def": {"_target_": NETWORK_TARGET, **network.config}, "mtmed3d": settings.to_dict()}


def _installed(package: str) -> str:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return "unknown"


def _metadata(
    network: TaskNetwork,
    settings: InferenceSettings | ImageSettings,
    name: str,
    version: str,
    trained_on: str,
    sha256: str,
) -> dict[str, Any]:
    """The keys of MONAI's bundle metadata schema, and ours under `mtmed3d`."""
    from MTMed3DCore.inference.settings import InferenceSettings  # at run time inference imports this package

    family = find_family(network.family)
    image, regions, subject = _studies(settings) if isinstance(settings, InferenceSettings) else _images(settings)
    return {
        "schema": METADATA_SCHEMA,
        "version": version,
        "changelog": {version: "first version under this number"},
        "monai_version": _installed("monai"),
        "pytorch_version": _installed("torch"),
        "numpy_version": _installed("numpy"),
        "required_packages_version": {package: _installed(package) for package in _REQUIRED_PACKAGES},
        "name": name,
        "task": f"{subject} " + ", ".join(network.tasks),
        "description": f"Network of the family {_kind(network)}. Trained on: {trained_on}",
        "authors": "MTMed3D contributors",
        "copyright": "MTMed3D contributors",
        "intended_use": RESEARCH_USE,
        "references": [family.reference],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": regions}},
        "mtmed3d": {"name": name, "trained_on": trained_on, "sha256": sha256, "written_by": __version__},
    }


def _kind(network: TaskNetwork) -> str:
    preset = network.config.get("preset")
    return network.family if preset is None else f"{network.family}, preset {preset}"


def _tensor(form: str, sides: list[str], channels: Sequence[str], **others: Any) -> dict[str, Any]:
    return {
        "type": "image",
        "format": form,
        "num_channels": len(channels),
        "spatial_shape": sides,
        "dtype": "float32",
        **others,
        "channel_def": {str(index): name for index, name in enumerate(channels)},
    }


def _studies(settings: InferenceSettings) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Input, output and subject of a network for brain studies."""
    sides, regions = ["32*n"] * 3, ("tumour core", "whole tumour", "enhancing tumour")
    image = _tensor(
        "magnitude", sides, settings.channel_order, modality="MR", value_range=[-10, 10], is_patch_data=True
    )
    return image, _tensor("segmentation", sides, regions, value_range=[0, 1], is_patch_data=True), "Brain tumour"


def _images(settings: ImageSettings) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Input, output and subject of a network for images."""
    truths, sides = settings.truths, [str(settings.side)] * 2
    background = ("background",) if truths.channels > len(truths.regions) else ()
    colours = ("red", "green", "blue") if settings.channels == 3 else ("grey",)
    image = _tensor("image", sides, colours, modality="2D image", value_range=[-1, 1], is_patch_data=False)
    regions = (*background, *truths.regions)
    return image, _tensor("segmentation", sides, regions, value_range=[0, 1], is_patch_data=False), "Image"
