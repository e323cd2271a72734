"""Gliomas: where they sit, what in them enhances, how far their oedema reaches.

A lesion is a depth field: millimetres inside the border of its core. Enhancement is a ragged, partly gapped rim of
varying thickness with septa and islands; all that the rim encloses is core, whatever its intensity, as the labelling
rules say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from MTMed3DCore.findings import ENHANCING, NECROTIC_CORE, OEDEMA
from MTMed3DCore.synthetic.anatomy import Coordinates, Head, Tissue
from MTMed3DCore.synthetic.family import Family
from MTMed3DCore.synthetic.fields import Lattice, Range, blur

CEREBELLAR_SHARE = 0.03
"""Share of lesions that may lie in cerebellum and brainstem, where adults' gliomas are rare."""
LARGEST_RADIUS_MM = 42.0
"""Nothing of a lesion lies further from its centre: no lesion of a head of common size is longer than 85 mm."""
APART_MM = 28.0
"""Between the border of one core and the centre of the next lesion, so that most foci keep a box of their own."""


@dataclass(frozen=True)
class Lesion:
    """One lesion before the tissue is known.

    Args:
        kind: ``"high"``, ``"low"`` or ``"satellite"``.
        core: mm inside the core, negative outside.
        distance: mm from the centre, in the lesion's own stretched metric.
        centre: head coordinates in mm.
        radius: mm.
        enhancing: bool, what enhances where it is core.
        reach: mm that the oedema extends beyond the core.
        near: bool, what is within `LARGEST_RADIUS_MM` of the centre.
    """

    kind: str
    core: torch.Tensor
    distance: torch.Tensor
    centre: tuple[float, float, float]
    radius: float
    enhancing: torch.Tensor
    reach: torch.Tensor
    near: torch.Tensor


def plan_lesions(lattice: Lattice, family: Family, head: Head) -> list[Lesion]:
    """No lesion, one glioma, or a high-grade glioma with satellites or a second focus."""
    random = lattice.random
    if random.chance(family.tumour_free):
        return []
    if random.chance(family.low_grade):
        return [_make_lesion(lattice, family, head, "low", family.low_grade_radius)]
    lesions = [_make_lesion(lattice, family, head, "high", family.high_grade_radius)]
    if random.chance(family.several):
        for _ in range(random.integer(1, 2)):
            kind = "satellite" if random.chance(0.75) else "high"
            bounds = family.satellite_radius if kind == "satellite" else family.high_grade_radius
            lesions.append(_make_lesion(lattice, family, head, kind, bounds, lesions))
    return lesions


def push_aside(lattice: Lattice, head: Head, lesions: list[Lesion]) -> tuple[Coordinates, torch.Tensor]:
    """Mass effect: coordinates at which the healthy anatomy is looked up, and how far sulci are squeezed (0 to 1)."""
    random = lattice.random
    x, y, z = head.coordinates
    pressed = torch.zeros_like(head.hull)
    for lesion in lesions:
        width = lesion.radius * random.uniform(1.3, 2.0) + 4
        push = random.uniform(0.0, 0.45) * torch.exp(-((lesion.distance / width) ** 2))
        x, y, z = (axis - push * (axis - at) for axis, at in zip((x, y, z), lesion.centre, strict=True))
        squeeze = torch.exp(-((lesion.distance / (width * 1.1)) ** 4)) * random.uniform(0.5, 1.0)
        pressed = torch.maximum(pressed, squeeze)
    return (x, y, z), pressed


def paint_labels(lattice: Lattice, head: Head, tissue: Tissue, lesions: list[Lesion]) -> torch.Tensor:
    """uint8 labels: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing."""
    random = lattice.random
    labels = torch.zeros(lattice.shape, dtype=torch.uint8, device=random.device)
    solid = head.brain & (tissue.fluid <= 0.6)
    # Oedema follows white matter, spares cortex and never crosses fluid.
    white = blur(tissue.white, 1.5 / lattice.spacing)  # a tract, not a speck of it
    follows = white + random.uniform(0.35, 0.6) * tissue.grey + 0.2 * lattice.noise(4) > random.uniform(0.35, 0.55)
    inside = head.brain & (tissue.ventricle <= 0.7) & (head.hull > 0.5)
    for lesion in lesions:
        wet = lesion.near & (lesion.core <= 0) & (-lesion.core < lesion.reach * (0.2 + 1.1 * white))
        labels[wet & solid & follows] = OEDEMA
    for lesion in lesions:
        labels[lesion.near & (lesion.core > 0) & inside] = NECROTIC_CORE
    for lesion in lesions:
        labels[lesion.near & (lesion.core > 0) & inside & lesion.enhancing] = ENHANCING
    return labels


def _make_lesion(
    lattice: Lattice, family: Family, head: Head, kind: str, radii: Range, others: Sequence[Lesion] = ()
) -> Lesion:
    random = lattice.random
    x, y, z = head.coordinates
    allowed = (head.hull > random.uniform(3, 14)) & (x.abs() > random.uniform(0, 14))
    if not random.chance(CEREBELLAR_SHARE):
        allowed = allowed & (head.cerebellum < -6) & (head.stem < -4)
    for other in others:
        allowed = allowed & (other.core < -APART_MM)
    places = (allowed if bool(allowed.any()) else head.hull > 3).nonzero()
    at = tuple(places[random.integer(0, len(places) - 1)].tolist())
    centre = (float(x[at]), float(y[at]), float(z[at]))
    radius = random.within(radii)
    # Low-grade tumours spread along tracts and gyri: more ragged than the expanding core of a high-grade one.
    ragged = random.uniform(0.6, 1.3) if kind == "low" else random.uniform(0.2, 1.0)
    bend = 0.22 * ragged * radius
    bent = [axis + bend * lattice.noise(max(5.0, radius * 0.5)) for axis in head.coordinates]
    distance = _stretched_distance(lattice, (bent[0], bent[1], bent[2]), centre)
    lobes = 0.30 * ragged * lattice.noise(max(5.0, radius * 0.45))
    lobes = lobes + 0.13 * ragged * lattice.noise(max(3.0, radius * 0.2))
    core = radius * (1 + lobes) - distance
    near = sum((axis - at) ** 2 for axis, at in zip(head.coordinates, centre, strict=True)) < LARGEST_RADIUS_MM**2
    if kind == "low":
        enhancing = torch.zeros_like(core, dtype=torch.bool)
        if random.chance(family.low_grade_enhancing):  # patches
            enhancing = (core > 1) & (lattice.noise(random.uniform(3, 6)) > random.within(family.low_grade_patches))
        reach_mm = random.uniform(0, 3) if random.chance(0.4) else random.uniform(2, 12)
    else:
        enhancing = _enhancement(lattice, family, core, radius)
        reach_mm = random.uniform(0, 2) if random.chance(0.1) else random.within(family.oedema_reach)
    fingers = random.uniform(0.3, 0.7) * lattice.noise(random.uniform(9, 18))
    fingers = fingers + random.uniform(0.1, 0.35) * lattice.noise(random.uniform(4, 7))
    return Lesion(kind, core, distance, centre, radius, enhancing, reach_mm * torch.exp(fingers), torch.as_tensor(near))


def _stretched_distance(lattice: Lattice, at: Coordinates, centre: tuple[float, float, float]) -> torch.Tensor:
    """Distance in mm from a point, stretched along random axes at equal volume."""
    random = lattice.random
    rotation = random.rotation()
    stretch = [math.exp(0.24 * random.normal()) for _ in range(3)]
    mean = math.prod(stretch) ** (1 / 3)
    offsets = [axis - middle for axis, middle in zip(at, centre, strict=True)]
    total = torch.full_like(offsets[0], 1e-3)
    for k in range(3):
        along = sum((float(rotation[k, i]) * offsets[i] for i in range(3)), torch.zeros_like(total))
        total = total + (along * mean / stretch[k]) ** 2
    return torch.sqrt(total)


def _enhancement(lattice: Lattice, family: Family, core: torch.Tensor, radius: float) -> torch.Tensor:
    """What enhances: a rim, layers and islands inside it, or the whole lesion."""
    random = lattice.random
    if random.chance(0.12):
        gaps = lattice.noise(random.uniform(3, 7)) > random.uniform(1.2, 2.5)
        return (core > 0) & ~gaps
    low, high = (math.log(bound) for bound in family.rim)
    thickness = min(math.exp(random.uniform(low, high)), max(1.5, 0.7 * radius))
    varied = thickness * torch.exp(random.uniform(0.25, 0.7) * lattice.noise(random.uniform(5, 11)))
    rim = (core > 0) & (core < varied)
    gaps = lattice.noise(random.uniform(5, 12)) > random.uniform(0.8, 2.4)
    islands = lattice.noise(random.uniform(3, 6)) > random.uniform(1.0, 2.4)
    result = (rim & ~gaps) | (islands & (core > 0))
    if random.chance(0.5):  # septa: folded sheets inside the core
        septa = lattice.sheet(random.uniform(6, 12)) < random.uniform(0.5, 0.35 * thickness + 0.8)
        result = result | (septa & (core > 0) & (lattice.noise(9) > random.uniform(-0.8, 1.0)))
    if random.chance(0.3):  # a thick nodular side
        result = result | ((core > 0) & (lattice.noise(max(6.0, radius * 0.6)) > random.uniform(0.8, 1.6)))
    return result & (core > 0)
