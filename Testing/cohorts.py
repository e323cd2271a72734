"""What the tests of cohorts share: a small model, small studies, and the command as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from MTMed3DCore import bundles
from MTMed3DCore.exports import FINDINGS
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.networks import build_network
from MTMed3DCore.sequences import SEQUENCES
from Testing.training_runs import with_sources

SIDE, SPACING_MM = 32, 5.0
UNEQUAL = ("created", "timing_s")


def make_model(folder: Path) -> Path:
    """A bundle of a network with random weights."""
    torch.manual_seed(0)
    network = build_network("mtmed3d", feature_size=12)
    settings = InferenceSettings(spacing_mm=SPACING_MM, window=64, grading_crop=64)
    return bundles.save_bundle(
        folder, network, settings, name="tiny", version="1", trained_on="Nothing.", card=""
    ).folder


def write_head(folder: Path, seed: int) -> Path:
    """A ball of noise in four sequences."""
    folder.mkdir(parents=True)
    axes = np.meshgrid(*(np.linspace(-1, 1, SIDE),) * 3, indexing="ij")
    head = np.sqrt(sum(axis**2 for axis in axes)) < 0.8
    rng = np.random.default_rng(seed)
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1])
    for sequence in SEQUENCES:
        image = np.where(head, 100 + 10 * rng.standard_normal(head.shape), 0).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"{sequence}.nii.gz")
    return folder


def command(*arguments: str | Path) -> list[str]:
    """``mtmed3d analyze`` as a command of its own."""
    return [sys.executable, "-m", "MTMed3DCore", "analyze", *map(str, arguments), "--device", "cpu"]


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Begin it, listening to SIGINT even where the tests themselves run in a shell's background and ignore it."""
    return subprocess.Popen(
        command(*arguments),
        env=with_sources(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_results(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until a run has finished so many studies."""
    while len(finished(out)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def finished(out: Path) -> set[str]:
    """The studies whose results stand; hidden folders hold what is being put into place."""
    return {path.parent.name for path in out.glob(f"[!.]*/{FINDINGS}")}


def contents(folder: Path) -> tuple[dict[str, Any], bytes]:
    """What two analyses of a study have in common: the findings without times, and the label map."""
    document = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))
    labels = np.asarray(nibabel.load(folder / "segmentation.nii.gz").dataobj)
    return {name: value for name, value in document.items() if name not in UNEQUAL}, labels.tobytes()
