"""The `published` preset against a recorded forward pass of the authors' code."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from MTMed3DCore.bundles import import_published
from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.networks import MultiTaskOutput, build_network
from MTMed3DCore.networks.published import network_from_published, published_name

RECORD = Path(__file__).resolve().parents[1] / "data" / "published"
TOLERANCE = 1e-4


def generated_tensor(name: str, shape: list[int], dtype: str) -> torch.Tensor:
    """The tensor that the record was made with: a fixed random draw per name, scaled by its role."""
    if dtype != "float32":
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    n = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if name.endswith("running_var"):
        n = 1 + 0.1 * np.abs(n)
    elif name.endswith("running_mean"):
        n = 0.1 * n
    elif name.endswith(("relative_position_bias_table", "bias")):
        n = 0.02 * n
    elif len(shape) == 1:
        n = 1 + 0.1 * n
    else:
        n = n / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(n, dtype=np.float32))


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, torch.Tensor]:
    """A checkpoint with every tensor of the authors' layout."""
    table = json.loads((RECORD / "state_dict.json").read_text())
    state = {name: generated_tensor(name, shape, dtype) for name, shape, dtype in table}
    indices = {published_name(k): v for k, v in build_network("published", 48).state_dict().items()}
    state.update({name: indices[name] for name in state if name.endswith("relative_position_index")})
    return state


@pytest.fixture(scope="module")
def output(checkpoint: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> MultiTaskOutput:
    """The recorded input through the bundle that the checkpoint was imported into, as a user would do it."""
    folder = tmp_path_factory.mktemp("published")
    torch.save({"epoch": 3, "state_dict": checkpoint}, folder / "theirs.pt")
    bundle = import_published(folder / "theirs.pt", folder / "bundle")
    x = np.random.Generator(np.random.PCG64(20251115)).standard_normal((1, 4, 96, 96, 96)).astype(np.float32)
    with torch.inference_mode():
        return bundle.load()(torch.from_numpy(x))


@pytest.fixture(scope="module")
def record() -> dict[str, np.ndarray]:
    return load_file(RECORD / "forward.safetensors")


def largest_difference(tensor: torch.Tensor, record: dict[str, np.ndarray], key: str) -> float:
    assert list(tensor.shape) == record[f"{key}/shape"].tolist()
    return float(np.abs(tensor.flatten().numpy()[record[f"{key}/index"]] - record[f"{key}/value"]).max())


def test_the_checkpoint_has_938_tensors_and_the_network_76698570_parameters(checkpoint):
    assert len(checkpoint) == 938
    assert sum(p.numel() for p in build_network("published", 48).parameters()) == 76_698_570


@pytest.mark.parametrize("level", range(5))
def test_every_encoder_level_equals_the_record(output, record, level, record_property):
    difference = largest_difference(output.features[level], record, f"encoder/{level}")
    record_property("difference", difference)
    assert difference < TOLERANCE


def test_the_segmentation_equals_the_record(output, record, record_property):
    difference = largest_difference(output.segmentation, record, "segmentation")
    record_property("difference", difference)
    assert difference < TOLERANCE


def test_the_grade_equals_the_record(output, record, record_property):
    difference = float(np.abs(output.grade.numpy() - record["classification"]).max())
    record_property("difference", difference)
    assert difference < TOLERANCE


@pytest.mark.parametrize("level", range(4))
def test_both_detection_heads_equal_the_record_at_every_level(output, record, level, record_property):
    for part, maps in zip(("detection_score", "detection_box"), output.detection[level], strict=True):
        difference = largest_difference(maps, record, f"{part}/{level}")
        record_property(part, difference)
        assert difference < TOLERANCE


def test_a_missing_tensor_is_refused_by_name(checkpoint):
    faulty = dict(checkpoint)
    del faulty["encoder.patch_embed.proj.bias"]
    with pytest.raises(ModelRefused, match=r"encoder\.patch_embed\.proj\.bias is missing"):
        network_from_published(faulty)


def test_an_extra_tensor_is_refused_by_name(checkpoint):
    with pytest.raises(ModelRefused, match=r"decoder\.spare is not part"):
        network_from_published({**checkpoint, "decoder.spare": torch.zeros(1)})


def test_a_misshapen_tensor_is_refused_with_both_shapes(checkpoint):
    faulty = {**checkpoint, "seg_decoder.out.conv.conv.bias": torch.zeros(4)}
    with pytest.raises(ModelRefused, match=r"seg_decoder.out.conv.conv.bias has shape \[4\], not \[3\]"):
        network_from_published(faulty)
