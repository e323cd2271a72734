"""Studies that are not what the models were made for, each made from a synthetic one or from nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from MTMed3DCore.geometry import Grid
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.study import Study
from MTMed3DCore.synthetic import SyntheticStudy, make_study
from MTMed3DCore.volume import Volume

UNITS = 800.0
"""Stored units of intensity 1."""
Images = dict[str, npt.NDArray[np.float32]]


def plain(study: SyntheticStudy) -> Study:
    """The synthetic study as it is."""
    return _study("plain", _images(study), study.grid)


def without_agent(study: SyntheticStudy) -> Study:
    """A second T1, with noise and shading of its own, in place of the T1ce."""
    images, brain = _images(study), study.brain.numpy()
    random = np.random.default_rng(study.seed)
    shading = ndimage.gaussian_filter(random.standard_normal(brain.shape), 40 / study.grid.spacing[0])
    again = images["t1"] * np.exp(0.1 * shading / shading.std()) + 0.02 * UNITS * random.standard_normal(brain.shape)
    return _study("no contrast agent", {**images, "t1ce": again * brain}, study.grid)


def swapped(study: SyntheticStudy) -> Study:
    """T1ce and T2 taken for each other."""
    images = _images(study)
    return _study("T1ce and T2 swapped", {**images, "t1ce": images["t2"], "t2": images["t1ce"]}, study.grid)


def child(study: SyntheticStudy, scale: float = 0.78) -> Study:
    """The same head in small, which is all of a child that is drawn here."""
    affine = study.grid.affine.copy()
    affine[:3] *= scale
    return _study("child-size brain", _images(study), Grid(study.grid.shape, affine))


def operated(study: SyntheticStudy, radius_mm: float = 19.0) -> Study:
    """A cavity full of fluid where the tumour comes nearest to the surface, as deep as wide."""
    images, brain = _images(study), study.brain.numpy()
    depth = ndimage.distance_transform_edt(brain, sampling=study.grid.spacing)
    from_tumour = ndimage.distance_transform_edt(study.labels.numpy() == 0, sampling=study.grid.spacing)
    at = np.unravel_index(np.argmin(np.where(brain & (depth < 4), from_tumour, np.inf)), brain.shape)
    middle = np.ones(brain.shape, dtype=bool)
    middle[at] = False
    cavity = brain & (ndimage.distance_transform_edt(middle, sampling=study.grid.spacing) < radius_mm)
    t1 = images["t1"]
    fluid = brain & (t1 < np.percentile(t1[brain], 4)) & (images["t2"] > np.percentile(images["t2"][brain], 90))
    random = np.random.default_rng(study.seed)
    for image in images.values():
        image[cavity] = random.normal(np.median(image[fluid]), 0.01 * UNITS, int(cavity.sum()))
    return _study("resection cavity", images, study.grid)


def ball(radius_mm: float = 75.0, spacing_mm: float = 2.0) -> Study:
    """A phantom without contrast."""
    grid = _cube(200.0, spacing_mm)
    inside = np.linalg.norm(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), axis=-1) < radius_mm
    values = {name: 500.0 + 20 * number for number, name in enumerate(SEQUENCES)}
    return _study("uniform ball", {name: _noisy(value * inside, inside, name) for name, value in values.items()}, grid)


def gradient_cube(side_mm: float = 120.0, spacing_mm: float = 2.0) -> Study:
    """A cube that brightens along an axis of its own in each sequence."""
    grid = _cube(180.0, spacing_mm)
    places = np.moveaxis(grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)), -1, 0)
    inside = (np.abs(places) < side_mm / 2).all(axis=0)
    ways = {"t1": places[0], "t1ce": places[1], "t2": places[2], "flair": places[0] + places[1]}
    images = {name: _noisy((400 + 2 * way) * inside, inside, name) for name, way in ways.items()}
    return _study("gradient cube", images, grid)


def computed_tomography(study: SyntheticStudy) -> Study:
    """Four reconstructions of one brain in Hounsfield units, what is outside it set to air."""
    brain, t1 = study.brain.numpy(), study.image[0].numpy()
    tissue = 8 + 28 * np.clip(t1 / np.percentile(t1[brain], 80), 0, 1)
    images = {name: np.where(brain, tissue + _noise(brain.shape, name, 4.0), -1000.0) for name in SEQUENCES}
    return _study("CT", images, study.grid)


def all_wrong(seed: int) -> Mapping[str, Callable[[], Study]]:
    """Every kind by name; the study behind them is made once."""
    study = make_study(seed)
    makers = {
        "plain": plain,
        "no contrast agent": without_agent,
        "T1ce and T2 swapped": swapped,
        "child-size brain": child,
        "resection cavity": operated,
        "CT": computed_tomography,
    }
    made: dict[str, Callable[[], Study]] = {name: partial(make, study) for name, make in makers.items()}
    return {**made, "uniform ball": ball, "gradient cube": gradient_cube}


def _images(study: SyntheticStudy) -> Images:
    return {name: UNITS * image for name, image in zip(SEQUENCES, study.image.numpy(), strict=True)}


def _study(name: str, images: Mapping[str, npt.NDArray[np.floating]], grid: Grid) -> Study:
    volumes = {key: Volume(np.rint(image).astype(np.float32), grid) for key, image in images.items()}
    return Study.from_volumes(name, volumes, {key: Path(f"{key}.nii.gz") for key in SEQUENCES})


def _cube(side_mm: float, spacing_mm: float) -> Grid:
    count = round(side_mm / spacing_mm)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -(count - 1) / 2 * spacing_mm
    return Grid((count, count, count), affine)


def _noise(shape: tuple[int, ...], name: str, deviation: float) -> npt.NDArray[np.floating]:
    return deviation * np.random.default_rng(SEQUENCES.index(name)).standard_normal(shape)


def _noisy(image: npt.NDArray[np.floating], inside: npt.NDArray[np.bool_], name: str) -> npt.NDArray[np.floating]:
    return (image + _noise(image.shape, name, 10.0)) * inside
