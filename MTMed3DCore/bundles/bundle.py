"""One model bundle: what its files say, and the network that they hold.

Layout, after the MONAI bundle specification::

    configs/metadata.json     MONAI's keys, plus `mtmed3d`: name, trained_on, sha256 of the weights, hashed patients
    configs/inference.json    `network_def` (what `build_network` is called with: the family and its arguments) and
                              `mtmed3d` (inference settings for brain studies or, marked by `kind`, for images)
    configs/manifest.json     SHA-256 and size of every other file
    models/model.safetensors  the weights, fp32 or fp16
    docs/README.md            the model card

MONAI runs `$` expressions and imports any `_target_` of a configuration. Here both files are read as plain data: the
only target is `NETWORK_TARGET`, and its arguments are JSON values.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MTMed3DCore.bundles.manifest import (
    FileRecord,
    check_file_set,
    check_hash,
    read_json,
    read_manifest,
)
from MTMed3DCore.bundles.provenance import took_part
from MTMed3DCore.bundles.weights import check_header
from MTMed3DCore.errors import ModelRefused, WrongUse
from MTMed3DCore.findings import ModelIdentity
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.networks.registry import DEFAULT_FAMILY
from MTMed3DCore.state_dicts import refuse_misfit

if TYPE_CHECKING:
    import torch

    from MTMed3DCore.images2d.settings import ImageSettings
    from MTMed3DCore.inference.settings import InferenceSettings  # at run time inference imports this package
    from MTMed3DCore.networks import TaskNetwork

METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
WEIGHTS = "models/model.safetensors"
CARD = "docs/README.md"
NETWORK_TARGET = "MTMed3DCore.networks.build_network"
MAX_WEIGHTS_BYTES = 2 << 30
"""Greatest size of a weights file; the published network in fp32 has an eighth of it."""
_PLAIN = "Use a bundle whose configuration holds plain values."
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, read but with its weights not loaded.

    Args:
        folder: where it lies.
        name: what it is called.
        version: of the model, for example ``"1.0.0"``.
        trained_on: one sentence.
        network_config: arguments of `MTMed3DCore.networks.build_network`.
        applied: how the network is applied to a study or to an image.
        sha256: of the weights file, as the manifest records it; loading refuses any other.
        size: of the weights file in bytes.
        metadata: the whole of ``configs/metadata.json``.
    """

    folder: Path
    name: str
    version: str
    trained_on: str
    network_config: dict[str, Any]
    applied: InferenceSettings | ImageSettings
    sha256: str
    size: int
    metadata: dict[str, Any]

    @property
    def settings(self) -> InferenceSettings:
        """How the network is applied to a brain study.

        Raises:
            ModelRefused: ``model-for-images``, a model for 2D images.
        """
        from MTMed3DCore.inference.settings import InferenceSettings

        if not isinstance(self.applied, InferenceSettings):
            text = f"The model {self.name} is made for 2D images, not for brain studies."
            raise ModelRefused("model-for-images", text, "Choose another model, or give it images.")
        return self.applied

    @property
    def image_settings(self) -> ImageSettings:
        """How the network is applied to a 2D image.

        Raises:
            ModelRefused: ``model-for-studies``, a model for brain studies.
        """
        from MTMed3DCore.images2d.settings import ImageSettings

        if not isinstance(self.applied, ImageSettings):
            text = f"The model {self.name} is made for brain studies, not for 2D images."
            raise ModelRefused("model-for-studies", text, "Choose a model that was trained on images.")
        return self.applied

    @property
    def for_studies(self) -> bool:
        """Whether it is applied to brain studies rather than to 2D images."""
        return not (self.applied.to_dict().get("kind"))

    @property
    def family(self) -> str:
        """The network's family, by its name in the registry."""
        return str(self.network_config.get("family", DEFAULT_FAMILY))

    @property
    def identity(self) -> ModelIdentity:
        """What findings record of the model."""
        return ModelIdentity(self.name, self.version, self.sha256, self.trained_on)

    def has_seen(self, patient: str) -> bool:
        """Whether a patient took part in the training, as far as the bundle tells; figures on that patient flatter."""
        return took_part(patient, self.metadata, self.sha256)

    def load(self, device: str | torch.device = "cpu") -> TaskNetwork:
        """The network in evaluation mode with float32 weights on `device`, after verifying every file.

        Raises:
            ModelRefused: a file is missing, added, changed or too large, or a tensor does not fit the network.
        """
        records = _verified_configs(self.folder)
        record = records[WEIGHTS]
        # The bytes that are checked are the bytes that are loaded: the file is read once.
        content = (self.folder / WEIGHTS).read_bytes()
        check_hash(self.folder, WEIGHTS, record, hashlib.sha256(content).hexdigest())
        return network_with_weights(self.network_config, content, self.folder / WEIGHTS).to(device)


def read_bundle(folder: Path) -> Bundle:
    """The bundle in `folder`; its configuration files are verified here, its weights when they are loaded.

    Raises:
        ModelRefused: no bundle, a damaged one, or one whose configuration asks for anything but `NETWORK_TARGET`.
    """
    folder = Path(folder).expanduser().absolute()
    if not folder.is_dir():
        raise ModelRefused("bundle-missing", f"{folder} is no folder.", "Run `mtmed3d model list` for what there is.")
    records = _verified_configs(folder)
    metadata = read_json(folder, METADATA)
    inference = read_json(folder, INFERENCE)
    own = metadata.get("mtmed3d")
    own = own if isinstance(own, dict) else {}
    name, trained_on, sha256 = (_text(folder, f"mtmed3d.{key}", own.get(key)) for key in _OWN_KEYS)
    version = _text(folder, "version", metadata.get("version"))
    if not NAME_PATTERN.fullmatch(name):
        raise ModelRefused("bundle-config", f"{folder / METADATA} gives the name {name!r}, which is no plain name.")
    check_hash(folder, f"{WEIGHTS} (by {METADATA})", records[WEIGHTS], sha256)
    config = _network_config(folder, inference.get("network_def"))
    settings = _settings(folder, inference.get("mtmed3d"))
    return Bundle(folder, name, version, trained_on, config, settings, sha256, records[WEIGHTS].size, metadata)


_OWN_KEYS = ("name", "trained_on", "sha256")


def verify(bundle: Bundle | Path) -> dict[str, str]:
    """Hash every file of a bundle against its manifest.

    Returns:
        SHA-256 of each file by its path inside the bundle.

    Raises:
        ModelRefused: a file is missing, added or changed; the text names it with the expected and the found hash.
    """
    folder = bundle.folder if isinstance(bundle, Bundle) else Path(bundle)
    records = read_manifest(folder)
    check_file_set(folder, records)
    for name, record in records.items():
        check_hash(folder, name, record, file_sha256(folder / name))
    return {name: record.sha256 for name, record in records.items()}


def network_with_weights(config: dict[str, Any], content: bytes, source: Path) -> TaskNetwork:
    """A network in evaluation mode with the tensors of a safetensors file.

    Args:
        config: arguments of `build_network`.
        content: the file's bytes.
        source: the file's path, for messages.

    Raises:
        ModelRefused: the configuration builds no network, or a tensor is missing, extra, misshapen or not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    from MTMed3DCore.networks import build_network

    check_header(content, source)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelRefused("weights-unreadable", f"{source} is no safetensors file: {error}.") from error
    try:
        network = build_network(**config)
    except (TypeError, ValueError, RuntimeError, MemoryError, WrongUse) as error:
        raise ModelRefused("bundle-network", f"{source.parent.parent} describes no network: {error}") from error
    refuse_misfit(
        tensors,
        network.state_dict(),
        code="bundle-tensors",
        subject=f"{source} does not fit the network",
        remedy="Use the weights and the configuration of one and the same bundle.",
    )
    network.load_state_dict(tensors)  # copies into the network's own float32 tensors, so fp16 files are cast here
    network.eval()
    network.multiply_out()
    return network


def _verified_configs(folder: Path) -> dict[str, FileRecord]:
    """The manifest, after checking the set of files, the size of the weights, and the content of all else."""
    records = read_manifest(folder)
    for name in (METADATA, INFERENCE, WEIGHTS):
        if name not in records:
            raise ModelRefused("bundle-file-missing", f"The manifest of the bundle {folder} does not name {name}.")
    if records[WEIGHTS].size > MAX_WEIGHTS_BYTES:
        text = f"{folder / WEIGHTS} has {records[WEIGHTS].size} bytes; at most {MAX_WEIGHTS_BYTES} are loaded."
        raise ModelRefused("weights-too-large", text)
    check_file_set(folder, records)
    for name, record in records.items():
        if name != WEIGHTS:
            check_hash(folder, name, record, file_sha256(folder / name))
    return records


def _text(folder: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ModelRefused("bundle-config", f"{folder / METADATA} has {key} = {value!r} where a text is needed.")
    return value


def _network_config(folder: Path, definition: object) -> dict[str, Any]:
    """The arguments of the network, read as data."""
    source = folder / INFERENCE
    if not isinstance(definition, dict):
        raise ModelRefused("bundle-config", f"{source} has no object `network_def`.")
    target = definition.get("_target_")
    if target != NETWORK_TARGET:
        text = f"{source} asks for _target_ {target!r}; only {NETWORK_TARGET} is allowed."
        raise ModelRefused("bundle-target", text, "Import the weights into a bundle of this package instead.")
    config = {key: value for key, value in definition.items() if key != "_target_"}
    _refuse_expressions(source, "network_def", config)
    return config


def _refuse_expressions(source: Path, where: str, value: object) -> None:
    """Refuse MONAI's `$` expressions, `@` references and nested `_keys_`: here they would be silently wrong values."""
    match value:
        case dict():
            for key, item in value.items():
                if not str(key).isidentifier() or str(key).startswith("_"):
                    raise ModelRefused(
                        "bundle-target", f"{source}: {where} has the key {key!r}, which is not allowed.", _PLAIN
                    )
                _refuse_expressions(source, f"{where}.{key}", item)
        case list():
            for index, item in enumerate(value):
                _refuse_expressions(source, f"{where}[{index}]", item)
        case str() if value[:1] in {"$", "@", "%"}:
            raise ModelRefused(
                "bundle-target", f"{source}: {where} is the expression {value!r}, which is never run.", _PLAIN
            )


def _settings(folder: Path, content: object) -> InferenceSettings | ImageSettings:
    from MTMed3DCore.images2d.settings import KIND, ImageSettings
    from MTMed3DCore.inference.settings import InferenceSettings

    if not isinstance(content, dict):
        raise ModelRefused("bundle-config", f"{folder / INFERENCE} has no object `mtmed3d`.")
    return ImageSettings.from_dict(content) if content.get("kind") == KIND else InferenceSettings.from_dict(content)
