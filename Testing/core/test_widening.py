"""A wide network with a narrow one's function, as the benchmarks use it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from MTMed3DCore.networks import build_network

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from widening import widened


@pytest.mark.parametrize("features", [24, 48])
def test_a_widened_network_has_the_size_of_its_kind_and_the_narrow_ones_numbers(features):
    torch.manual_seed(3)
    narrow = build_network("mtmed3d", 12, num_anchors=2).eval()
    for name, parameter in narrow.named_parameters():
        if name.endswith(("bias", "relative_position_bias_table")):
            torch.nn.init.normal_(parameter, std=0.3)
    wide = widened(narrow, features)
    assert wide.config["feature_size"] == features
    x = torch.randn(1, 4, 64, 64, 64)
    with torch.no_grad():
        expected, found = narrow(x), wide(x)
    assert float(expected.segmentation.abs().max()) > 1
    assert float((found.segmentation - expected.segmentation).abs().max()) <= 1e-4
    assert float((found.grade - expected.grade).abs().max()) <= 1e-5
    for ours, theirs in zip(found.detection, expected.detection, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max()) <= 1e-5
