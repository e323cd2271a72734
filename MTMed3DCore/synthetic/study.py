"""A whole synthetic study with its exact truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.findings import ENHANCING, NECROTIC_CORE
from MTMed3DCore.geometry import Grid, VoxelBox
from MTMed3DCore.synthetic.anatomy import make_head, make_tissue
from MTMed3DCore.synthetic.contrast import make_images
from MTMed3DCore.synthetic.family import FAMILIES
from MTMed3DCore.synthetic.fields import Lattice, Random
from MTMed3DCore.synthetic.lesions import paint_labels, plan_lesions, push_aside

SMALLEST_LESION_ML = 0.1
"""Separate specks below this are relabelled as healthy: no reader would outline them."""
DEFAULT_SHAPE = (80, 96, 80)
DEFAULT_SPACING_MM = 2.0


@dataclass(frozen=True, eq=False)
class SyntheticStudy:
    """Four sequences and the truth about them.

    Args:
        image: float32 (4, X, Y, Z), T1, T1ce, T2, FLAIR, zero outside the brain.
        labels: uint8 (X, Y, Z): 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing.
        brain: bool (X, Y, Z).
        boxes: one for each separate tumour, in voxels, half-open.
        grade: 1 high, 0 low, None without tumour.
        grid: array axes R, A, S, origin in the middle.
        seed, family: what makes it again.
    """

    image: torch.Tensor
    labels: torch.Tensor
    brain: torch.Tensor
    boxes: list[VoxelBox]
    grade: int | None
    grid: Grid
    seed: int
    family: str

    @property
    def affine(self) -> npt.NDArray[np.floating]:
        """Voxel to RAS mm."""
        return self.grid.affine


def make_study(
    seed: int,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing_mm: float = DEFAULT_SPACING_MM,
    device: str | torch.device = "cpu",
    family: str = "default",
) -> SyntheticStudy:
    """Make one study.

    Args:
        seed: any whole number; the same seed, shape, spacing and device type give the same study.
        shape: voxels; 160 x 192 x 160 mm holds every brain.
        spacing_mm: 1 to 2 mm.
        device: where the fields are made.
        family: one of `FAMILIES`.

    Raises:
        WrongUse: an unknown family.
    """
    if family not in FAMILIES:
        raise WrongUse("family-unknown", f"There is no family {family!r}.", f"Choose one of {', '.join(FAMILIES)}.")
    ranges = FAMILIES[family]
    lattice = Lattice(Random(seed, torch.device(device)), shape, spacing_mm)
    with torch.no_grad():
        head = make_head(lattice)
        lesions = plan_lesions(lattice, ranges, head)
        displaced, pressed = push_aside(lattice, head, lesions)
        tissue = make_tissue(lattice, ranges, head, displaced, pressed)
        labels, boxes = _separate_tumours(paint_labels(lattice, head, tissue, lesions), spacing_mm)
        low_grade = bool(lesions) and lesions[0].kind == "low"
        image = make_images(lattice, ranges, head, tissue, labels, low_grade)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * spacing_mm for n in shape]
    grade = None if not boxes else 0 if low_grade else 1
    return SyntheticStudy(image, labels, head.brain, boxes, grade, Grid(shape, affine), seed, family)


def _separate_tumours(labels: torch.Tensor, spacing_mm: float) -> tuple[torch.Tensor, list[VoxelBox]]:
    """Labels without specks, and the box of each connected tumour (26 neighbours), largest first.

    Oedema that has come away from every core goes too: a lesion is what has a core, and no reader boxes a fleck.
    """
    array = labels.cpu().numpy()
    parts, count = ndimage.label(array > 0, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * spacing_mm**3 / 1000
    cored = np.isin(np.arange(1, count + 1), parts[(array == NECROTIC_CORE) | (array == ENHANCING)])
    kept = [1 + int(k) for k in np.argsort(-sizes) if cored[k] and sizes[k] >= SMALLEST_LESION_ML]
    boxes = [VoxelBox.around(parts == k) for k in kept]
    cleaned = np.where(np.isin(parts, kept), array, 0).astype(np.uint8)
    return torch.from_numpy(cleaned).to(labels.device), boxes
