"""A head round a brain: what skull stripping took away, put back by drawing it.

Round the brain come cerebrospinal fluid, dura, a skull of two tables with marrow between them, scalp and skin; below it
skull base, face with eyes, orbital fat, nasal air and muscle, and a neck with the spinal cord. Thicknesses, contrasts,
shading and noise vary with the seed. No atlas and no patient goes in; the brain is the caller's.

The head serves tests: its brain mask is known to the voxel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.geometry import Grid
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.synthetic.fields import Lattice, Random

MARGIN_MM = (32.0, 36.0, 60.0)
"""Room made round the brain's box: to either side, to front and back, and below (above takes the first)."""
HULL_MM = 12.0
"""The skull does not follow furrows narrower than twice this."""

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# T1, T1ce, T2, FLAIR as ranges relative to the brain's median in the same sequence.
_TISSUES: Mapping[str, tuple[tuple[float, float], ...]] = {
    "air": ((0.01, 0.03), (0.01, 0.03), (0.01, 0.03), (0.01, 0.03)),
    "bone": ((0.10, 0.25), (0.10, 0.25), (0.08, 0.20), (0.08, 0.20)),
    "fluid": ((0.25, 0.45), (0.25, 0.45), (1.9, 3.0), (0.15, 0.40)),
    "dura": ((0.50, 0.80), (0.9, 1.8), (0.30, 0.50), (0.40, 0.70)),
    "marrow": ((0.9, 1.9), (0.9, 1.9), (0.5, 1.1), (0.5, 1.0)),
    "fat": ((1.6, 2.6), (1.5, 2.4), (1.0, 2.0), (1.1, 2.0)),
    "skin": ((0.8, 1.2), (0.9, 1.4), (0.4, 0.8), (0.6, 1.0)),
    "muscle": ((0.65, 0.90), (0.8, 1.1), (0.30, 0.50), (0.35, 0.60)),
    "mucosa": ((0.6, 0.9), (1.3, 2.0), (1.4, 2.2), (1.0, 1.6)),
    "vitreous": ((0.25, 0.40), (0.25, 0.40), (2.0, 3.0), (0.20, 0.45)),
}


@dataclass(frozen=True, eq=False)
class HeadStudy:
    """Four sequences of a whole head, and its brain.

    Args:
        image: float32 (4, X, Y, Z) in the order of `SEQUENCES`, not negative.
        brain: bool (X, Y, Z): the caller's brain, to the voxel.
        grid: the caller's grid with room made round it.
    """

    image: Field
    brain: Mask
    grid: Grid

    @property
    def sequences(self) -> dict[str, Field]:
        """The image by sequence."""
        return dict(zip(SEQUENCES, self.image, strict=True))


def make_head_round(
    image: npt.NDArray[np.floating], brain: npt.NDArray[np.bool_], grid: Grid, seed: int = 0
) -> HeadStudy:
    """Draw a head round a skull-stripped brain.

    Args:
        image: intensities (4, X, Y, Z) in the order of `SEQUENCES`, positive inside the brain.
        brain: bool (X, Y, Z).
        grid: of both; any orientation, near-isotropic voxels of 1 to 3 mm.
        seed: any whole number; the same seed gives the same head.

    Raises:
        WrongUse: shapes that do not fit each other, or an empty brain.
    """
    if image.shape != (len(SEQUENCES), *grid.shape) or brain.shape != grid.shape or not brain.any():
        text = f"A head needs images (4, X, Y, Z) and a brain on {grid.shape}, got {image.shape} and {brain.shape}."
        raise WrongUse("head-shapes", text)
    image, brain, grid = _with_room(image, brain, grid)
    random = Random(seed, torch.device("cpu"))
    lattice = Lattice(random, grid.shape, float(grid.spacing.mean()))
    names = _tissue_map(lattice, brain, grid)
    kinds = list(_TISSUES)
    result = np.empty(image.shape, dtype=np.float32)
    mottled = lattice.noise(4.0).numpy()
    for channel, source in enumerate(image):
        scale = float(np.median(source[brain]))
        table = np.array([scale * random.within(_TISSUES[kind][channel]) for kind in kinds], dtype=np.float32)
        drawn = table[names] * (1 + 0.07 * mottled)
        drawn[brain] = source[brain]
        drawn = ndimage.gaussian_filter(drawn, random.uniform(0.3, 0.6) / lattice.spacing)
        drawn *= np.exp(random.uniform(0.05, 0.2) * lattice.noise(60.0).numpy())
        deviation = random.uniform(0.01, 0.03) * scale
        real, imaginary = (deviation * random.white(grid.shape).numpy() for _ in range(2))
        result[channel] = np.hypot(drawn + real, imaginary)  # magnitude images have Rician noise
    return HeadStudy(result, brain, grid)


def _with_room(image: npt.NDArray[np.floating], brain: Mask, grid: Grid) -> tuple[npt.NDArray[np.floating], Mask, Grid]:
    """Cut or pad to the brain's box with `MARGIN_MM` round it."""
    inside = np.argwhere(brain)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    upward = grid.axes[:, 2]
    anatomical = np.abs(grid.axes).argmax(axis=1)
    before, after = np.empty(3), np.empty(3)
    for axis, world in enumerate(anatomical):
        margin = MARGIN_MM[0] if world == 2 else MARGIN_MM[world]
        below = MARGIN_MM[2] if world == 2 else margin
        pair = (below, margin) if upward[axis] > 0 or world != 2 else (margin, below)
        before[axis], after[axis] = (np.array(pair) / grid.spacing[axis]).round()
    start = (low - before).astype(int)
    shape = (high + after - start).astype(int)
    source = tuple(slice(max(0, s), min(n, s + m)) for s, n, m in zip(start, grid.shape, shape, strict=True))
    target = tuple(slice(c.start - s, c.stop - s) for c, s in zip(source, start, strict=True))
    roomy = np.zeros((len(image), *shape), dtype=np.float32)
    mask = np.zeros(shape, dtype=bool)
    roomy[:, *target], mask[target] = image[:, *source], brain[source]
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_world(start)
    return roomy, mask, Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _tissue_map(lattice: Lattice, brain: Mask, grid: Grid) -> npt.NDArray[np.uint8]:
    """The kind of tissue of every voxel, as an index into `_TISSUES`."""
    random = lattice.random
    kinds = {name: index for index, name in enumerate(_TISSUES)}
    centres = grid.to_world(np.moveaxis(np.indices(grid.shape), 0, -1)).astype(np.float32)
    world = list(np.moveaxis(centres, -1, 0))
    low, high = (np.array([function(axis[brain]) for axis in world]) for function in (np.min, np.max))
    middle = (low + high) / 2
    x, y, z = (axis - centre for axis, centre in zip(world, middle, strict=True))
    front, bottom = float(high[1] - middle[1]), float(low[2] - middle[2])
    depth = ndimage.distance_transform_edt(~brain, sampling=grid.spacing)
    near = depth > HULL_MM
    hull = ndimage.distance_transform_edt(~near, sampling=grid.spacing) > HULL_MM if near.any() else brain
    away = ndimage.distance_transform_edt(~(hull | brain), sampling=grid.spacing).astype(np.float32)
    uneven = lattice.noise(25.0).numpy()
    # The base of the skull is thicker and rougher than the vault.
    base = np.clip((bottom + 45.0 - z) / 40.0, 0.0, 1.0)
    scalp = random.uniform(4.0, 8.0) * (1 + 0.25 * lattice.noise(30.0).numpy())
    layers = [
        ("fluid", random.uniform(0.5, 2.5) * (1 + 0.4 * uneven).clip(0.2)),
        ("dura", random.uniform(0.6, 1.2)),
        ("bone", random.uniform(1.5, 2.5) + 3.0 * base),
        ("marrow", random.uniform(1.5, 4.0) * (1 + 0.4 * lattice.noise(20.0).numpy()).clip(0.1)),
        ("bone", random.uniform(1.2, 2.2) + 2.0 * base),
        ("fat", scalp.clip(2.0)),
        ("skin", random.uniform(1.2, 2.2)),
    ]
    result = np.full(grid.shape, kinds["air"], dtype=np.uint8)
    # Below the vault stand the face in front and the neck behind, in one outline.
    oval = np.sqrt((x / 68.0) ** 2 + ((y - 12.0) / (front + 16.0)) ** 2)
    under = z < bottom + 38.0
    soft = lattice.noise(7.0).numpy()
    inside = under & (oval < 1.0)
    result[inside] = np.where(soft > 0.5, kinds["fat"], kinds["muscle"])[inside]
    result[under & (oval >= 1.0) & (oval < 1.06)] = kinds["fat"]
    result[under & (oval >= 1.06) & (oval < 1.08)] = kinds["skin"]
    nose = inside & (np.abs(x) < 14.0) & (y > front - 55.0) & (z < bottom + 30.0)
    result[nose] = np.where(lattice.noise(4.0).numpy() > 0.2, kinds["mucosa"], kinds["air"])[nose]
    spine = np.sqrt(x**2 + (y + 18.0) ** 2)
    vertebra = (z < bottom - 4.0) & (np.sqrt((x / 18.0) ** 2 + ((y - 2.0) / 13.0) ** 2) < 1.0)
    result[vertebra] = kinds["marrow"]
    for radius, kind in ((13.0, "bone"), (10.0, "fluid")):
        result[(z < bottom + 2.0) & (spine < radius)] = kinds[kind]
    outer = np.zeros(grid.shape, dtype=np.float32)
    shells: list[tuple[str, Mask]] = []
    for kind, thickness in layers:
        inner, outer = outer, outer + thickness
        shells.append((kind, (away > inner) & (away <= outer)))
    for kind, shell in reversed(shells):
        # Scalp and skin end where face and neck begin.
        result[shell & ~(inside & (kind in ("fat", "skin")))] = kinds[kind]
    for side in (-1.0, 1.0):
        eye = np.sqrt((x - side * 32.0) ** 2 + (y - front + 6.0) ** 2 + (z - bottom - 32.0) ** 2)
        free = away > 3.5
        result[free & (eye < 19.0)] = kinds["fat"]
        result[free & (eye < 12.5)] = kinds["muscle"]
        result[free & (eye < 11.5)] = kinds["vitreous"]
    result[hull & ~brain] = kinds["fluid"]
    # The cord leaves the brain at its lowest point and is no brain.
    cord = (z < bottom) & (spine < 5.0)
    result[cord] = kinds["muscle"]
    return result
