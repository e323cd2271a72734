"""The model of the corpus: untrained, as small as a network can be, and coarse, so that an analysis is quick."""

from __future__ import annotations

from pathlib import Path

import torch

from MTMed3DCore.bundles import Bundle, save_bundle
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network


def write_model(folder: Path, seed: int = 0) -> Bundle:
    """Write the bundle into `folder`, which is made."""
    torch.manual_seed(seed)
    settings = InferenceSettings(spacing_mm=8.0, window=64, grading_crop=64)
    network = build_network("mtmed3d", feature_size=12, tasks=("segmentation",))
    return save_bundle(folder, network, settings, name="corpus", version="1", trained_on="Nothing.", card="A test.")
