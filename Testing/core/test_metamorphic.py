"""The same study stored in another way gives the same result in the world.

The network is replaced by thresholds on FLAIR and T1ce, so that what is compared is everything round the network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from MTMed3DCore.bundles import Bundle, save_bundle
from MTMed3DCore.findings import Findings
from MTMed3DCore.inference import InferenceSettings, analyze
from MTMed3DCore.networks import build_network
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from MTMed3DCore.synthetic import make_study, write_study
from MTMed3DCore.volume import read_volume, to_sitk

T1CE, FLAIR = 1, 3


class Thresholds:
    """Stands in for a network: regions by intensity, no boxes, no grade."""

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]

    def segment(self, x: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        whole, core = x[:, FLAIR] - 1.2, torch.minimum(x[:, FLAIR] - 1.2, x[:, T1CE] - 1.5)
        return 30 * torch.stack([core, whole, core], dim=1)

    def detect(self, features: list[torch.Tensor]) -> None:
        return None

    def grade(self, segmentation: torch.Tensor) -> None:
        return None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    settings = InferenceSettings(spacing_mm=3.0, window=64, grading_crop=64, minimum_lesion_ml=0.5)
    folder = tmp_path_factory.mktemp("bundles") / "thresholds"
    network = build_network("mtmed3d", 12, ("segmentation",))
    return save_bundle(folder, network, settings, name="thresholds", version="1", trained_on="nothing", card="A test.")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    study = next(s for s in (make_study(seed, (56, 64, 56), 3.0) for seed in range(20)) if len(s.boxes) == 1)
    return write_study(study, tmp_path_factory.mktemp("studies") / "original")


@pytest.fixture(scope="module")
def expected(original, bundle) -> Findings:
    return analyze(Study.read(original), bundle, "cpu", network=Thresholds())


def reoriented(codes: str) -> Callable[[nibabel.Nifti1Image, Path], None]:
    def save(image: nibabel.Nifti1Image, stem: Path) -> None:
        now = nibabel.io_orientation(image.affine)
        wanted = nibabel.orientations.axcodes2ornt(codes)
        turned = image.as_reoriented(nibabel.orientations.ornt_transform(now, wanted))
        nibabel.save(nibabel.Nifti1Image(np.asarray(turned.dataobj), turned.affine), f"{stem}.nii.gz")

    return save


def with_itk(suffix: str) -> Callable[[nibabel.Nifti1Image, Path], None]:
    def save(image: nibabel.Nifti1Image, stem: Path) -> None:
        sitk.WriteImage(to_sitk(read_volume(image.get_filename())), f"{stem}{suffix}")

    return save


def as_float(image: nibabel.Nifti1Image, stem: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype(np.float32) * 0.37 + 0.0, image.affine), f"{stem}.nii")


def with_slope(image: nibabel.Nifti1Image, stem: Path) -> None:
    raw = bytearray(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine).to_bytes())
    raw[112:120] = np.array([0.002, 0.0], np.float32).tobytes()  # scl_slope, scl_inter
    Path(f"{stem}.nii").write_bytes(bytes(raw))


WAYS = {codes: reoriented(codes) for codes in ("LPS", "PIR", "ASL", "SRP", "LAI")}
WAYS |= {"nrrd": with_itk(".nrrd"), "metaimage": with_itk(".mha"), "float": as_float, "int16 with slope": with_slope}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_study_stored_otherwise_gives_the_same_result_in_the_world(way, original, expected, bundle, tmp_path):
    for name in SEQUENCES:
        WAYS[way](nibabel.load(original / f"{name}.nii.gz"), tmp_path / name)
    found = analyze(Study.read(tmp_path), bundle, "cpu", network=Thresholds())
    ours, theirs = (
        nibabel.as_closest_canonical(nibabel.Nifti1Image(each.labels, each.grid.affine)) for each in (found, expected)
    )
    assert np.allclose(ours.affine, theirs.affine, atol=1e-4)
    tumour = np.asarray(theirs.dataobj) > 0
    assert tumour.sum() > 100
    assert (np.asarray(ours.dataobj) != np.asarray(theirs.dataobj)).sum() <= 0.002 * tumour.sum()
    assert len(found.lesions) == len(expected.lesions) > 0
    for mine, other in zip(found.lesions, expected.lesions, strict=True):
        assert np.allclose(mine.box.center, other.box.center, atol=0.01)
        corners = (np.sort(each.box.corners().round(2), axis=0) for each in (mine, other))
        assert np.allclose(*corners, atol=0.02)
        assert mine.volumes_ml == pytest.approx(other.volumes_ml, rel=0.01, abs=0.1)
        assert mine.longest_diameter_mm == pytest.approx(other.longest_diameter_mm, abs=0.5)
