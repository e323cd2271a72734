"""From tissue and labels to four MR sequences, as a scanner would show them.

Tissue contrast first, then pathology, then gadolinium, then the scanner: slices, gamma, shading, coils, noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from MTMed3DCore.findings import ENHANCING, NECROTIC_CORE, OEDEMA
from MTMed3DCore.sequences import SEQUENCES
from MTMed3DCore.synthetic.anatomy import Head, Tissue
from MTMed3DCore.synthetic.family import Family
from MTMed3DCore.synthetic.fields import Lattice, Random, blur


class Painter:
    """Four images, and the brush that lays soft-edged structures over them.

    Args:
        lattice: of the study.
        images: by sequence.
    """

    def __init__(self, lattice: Lattice, images: dict[str, torch.Tensor]) -> None:
        self.lattice, self.images = lattice, images
        random = lattice.random
        self._coarse = [lattice.noise(random.uniform(4, 12)) for _ in range(3)]
        self._fine = lattice.noise(3)

    def paint(
        self, mask: torch.Tensor, values: Mapping[str, float], texture: float, edge_mm: float, opacity: float = 1.0
    ) -> None:
        """Blend a value into each sequence where the mask is.

        Args:
            mask: bool (X, Y, Z).
            values: intensity by sequence.
            texture: relative deviation of the intensity inside.
            edge_mm: standard deviation of the soft edge.
            opacity: 0 to 1.
        """
        share = blur(mask.float(), edge_mm / self.lattice.spacing).clamp(0, 1) * opacity
        for index, (name, value) in enumerate(values.items()):
            textured = value * (1 + texture * (0.7 * self._coarse[index % 3] + 0.4 * self._fine))
            self.images[name] = self.images[name] * (1 - share) + textured * share


def make_images(
    lattice: Lattice, family: Family, head: Head, tissue: Tissue, labels: torch.Tensor, low_grade: bool
) -> torch.Tensor:
    """Intensities (4, X, Y, Z), not negative, zero outside the brain, in the order of `SEQUENCES`."""
    images, white = _healthy(lattice, family, tissue)
    if bool((labels > 0).any()):
        _paint_tumour(Painter(lattice, images), family, labels, white, low_grade)
    _enhance_normal(lattice, images, tissue)
    received = coil_sensitivity(lattice.random, head) if family.coil[1] > 0 else None
    scanned = [_scan(lattice, family, images[name], received) for name in SEQUENCES]
    return torch.stack(scanned) * head.brain


def _healthy(lattice: Lattice, family: Family, tissue: Tissue) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The four sequences without tumour, and the white matter's intensity in each."""
    random = lattice.random
    white = {"t1": random.within(family.white_t1), "t2": random.within(family.white_t2)}
    white["flair"] = random.within(family.white_flair)
    white["t1ce"] = white["t1"] * random.uniform(0.94, 1.02)
    grey = {"t1": random.within(family.grey_t1), "t2": random.within(family.grey_t2)}
    grey["flair"] = white["flair"] + random.within(family.grey_over_white_flair)
    grey["t1ce"] = grey["t1"] * random.uniform(0.98, 1.12)
    fluid = {"t1": random.within(family.fluid_t1), "t2": random.within(family.fluid_t2)}
    fluid["flair"] = random.within(family.fluid_flair)
    fluid["t1ce"] = fluid["t1"] * random.uniform(0.8, 1.2)
    broad, mottled = lattice.noise(10), lattice.noise(4)
    images = {}
    for name in SEQUENCES:
        image = fluid[name] * tissue.fluid + grey[name] * tissue.grey + white[name] * tissue.white
        sign = 1 if name in ("t2", "flair") else -1
        images[name] = image * (1 + sign * random.uniform(0, 0.06) * mottled + random.uniform(0, 0.05) * broad)
    images["t2"] = images["t2"] * (1 - 0.15 * tissue.deep_grey)  # iron
    images["flair"] = images["flair"] * (1 - random.uniform(0, 0.2) * tissue.deep_grey)
    if random.chance(family.bright_cortex):  # cortex that is brighter on FLAIR in places, by coil and by nature
        patches = torch.sigmoid(3 * (lattice.noise(random.uniform(8, 20)) - random.uniform(0.3, 1.5)))
        images["flair"] = images["flair"] + random.within(family.bright_cortex_flair) * patches * tissue.grey
    aged = tissue.lesions_of_age
    images["flair"] = images["flair"] + aged * random.uniform(0.15, 0.5)
    images["t2"] = images["t2"] + aged * random.uniform(0.1, 0.4)
    darker = random.uniform(0.05, 0.2)
    images["t1"], images["t1ce"] = images["t1"] - aged * darker, images["t1ce"] - aged * darker
    return images, white


def _paint_tumour(
    painter: Painter, family: Family, labels: torch.Tensor, white: Mapping[str, float], low_grade: bool
) -> None:
    random, lattice = painter.lattice.random, painter.lattice
    strength = random.within(family.oedema_strength)
    flair = white["flair"] + (random.uniform(0.85, 1.25) - white["flair"]) * strength
    t2 = white["t2"] + (random.uniform(0.70, 1.05) - white["t2"]) * strength
    t1 = white["t1"] + (random.uniform(0.20, 0.55) - white["t1"]) * strength
    wet = {"t1": t1, "t1ce": t1 * random.uniform(0.95, 1.05), "t2": t2, "flair": flair}
    painter.paint(labels > 0, wet, random.uniform(0.03, 0.16), random.uniform(1.0, 2.4), random.uniform(0.8, 1.0))
    if random.chance(0.6):  # wetter pockets: dark on T1, oedema all the same
        pocket = (labels == OEDEMA) & (lattice.noise(random.uniform(5, 12)) > random.uniform(0.0, 0.9))
        dark = t1 * random.uniform(0.6, 0.95)
        wetter = {"t1": dark, "t1ce": dark, "t2": t2 * random.uniform(1.0, 1.3)}
        wetter["flair"] = flair * random.uniform(0.95, 1.25)
        painter.paint(pocket, wetter, random.uniform(0.02, 0.1), random.uniform(1.0, 2.4), random.uniform(0.6, 1.0))
    core = labels == NECROTIC_CORE
    if low_grade:
        dark = random.uniform(0.38, 0.70)
        mismatch = random.chance(0.25)  # the T2-FLAIR mismatch of astrocytomas
        inner = random.uniform(0.35, 0.7) if mismatch else flair * random.uniform(0.85, 1.2)
        values = {"t1": dark, "t1ce": dark * random.uniform(0.97, 1.05)}
        values |= {"t2": random.uniform(0.75, 1.15), "flair": inner}
        painter.paint(core, values, random.uniform(0.04, 0.18), random.uniform(0.7, 2.2), random.uniform(0.6, 1.0))
        enhancement = random.uniform(0.9, 1.4)
    else:
        # Often no darker than the oedema round it: dark on T1 must not come to mean core.
        dark = random.uniform(0.20, 0.75)
        values = {"t1": dark, "t1ce": min(0.95, dark * random.uniform(0.9, 1.6))}
        values |= {"t2": random.uniform(0.45, 1.2), "flair": random.uniform(0.30, 1.15)}
        painter.paint(core, values, random.uniform(0.05, 0.30), random.uniform(0.7, 1.6))
        low, high = (math.log(bound) for bound in family.enhancement)
        enhancement = math.exp(random.uniform(low, high))
    bright = {"t1": random.uniform(0.42, 0.72), "t1ce": enhancement, "t2": random.uniform(0.45, 0.9)}
    bright["flair"] = random.uniform(0.50, 1.1)
    painter.paint(labels == ENHANCING, bright, random.uniform(0.06, 0.28), random.uniform(0.7, 1.9))
    if random.chance(0.15):  # blood products
        blood = core & (lattice.noise(5) > 0.8)
        values = {"t1": random.uniform(0.8, 1.1), "t1ce": random.uniform(0.85, 1.2)}
        values |= {"t2": random.uniform(0.2, 0.7), "flair": random.uniform(0.3, 0.9)}
        painter.paint(blood, values, 0.1, 1.2)


def _enhance_normal(lattice: Lattice, images: dict[str, torch.Tensor], tissue: Tissue) -> None:
    """Gadolinium in vessels, dura and choroid plexus, which have no blood-brain barrier; flow voids on T2."""
    random = lattice.random
    blood = random.uniform(1.0, 1.9)
    structures = ((tissue.vessels, 0.75, 1.0), (tissue.dura, 0.9, 1.0), (tissue.choroid, 0.6, 0.9))
    for share, low, high in structures:
        opacity = share * random.uniform(0.5, 1.0)
        images["t1ce"] = images["t1ce"] * (1 - opacity) + blood * random.uniform(low, high) * opacity
    images["t2"] = images["t2"] * (1 - random.uniform(0, 0.7) * tissue.vessels) * (1 - 0.5 * tissue.dura)
    images["flair"] = images["flair"] * (1 - random.uniform(0, 0.5) * tissue.vessels)
    images["flair"] = images["flair"] + random.uniform(0, 0.3) * tissue.choroid
    images["t1"] = images["t1"] * (1 - random.uniform(-0.3, 0.3) * tissue.dura)
    images["t1"] = images["t1"] + random.uniform(0, 0.3) * tissue.vessels


def coil_sensitivity(random: Random, head: Head) -> torch.Tensor:
    """Root of the sum of squares of what loops round the head receive, its mean in the brain being one (X, Y, Z).

    A loop of radius a receives from a place at distance d in proportion to a² / (a² + d²)^(3/2), the Biot-Savart field
    on its axis; the array's places, the loops' gains and the head's place among them are drawn at random.
    """
    radius = random.uniform(35, 60)
    offset = [random.uniform(-12, 12) for _ in range(3)]
    power = torch.zeros_like(head.hull)
    for _ in range(random.integer(6, 14)):
        around, up = random.uniform(0, 2 * math.pi), random.uniform(-0.5, 1.0)
        level = math.sqrt(1 - up**2)
        place = (105 * level * math.cos(around), 120 * level * math.sin(around), 115 * up)
        gain = math.exp(0.4 * random.normal())
        squares = [(c - p - o) ** 2 for c, p, o in zip(head.coordinates, place, offset, strict=True)]
        power = power + (gain * radius**2 / (radius**2 + sum(squares)) ** 1.5) ** 2
    received = torch.sqrt(power)
    return received / received[head.brain].mean()


def _scan(lattice: Lattice, family: Family, image: torch.Tensor, received: torch.Tensor | None) -> torch.Tensor:
    """Point spread, contrast curve, shading, coils and noise of one sequence."""
    random, spacing = lattice.random, lattice.spacing
    spread = [random.uniform(0.2, 0.9) / spacing] * 3
    if random.chance(family.thick_slices):
        axis = 2 if random.chance(0.7) else random.integer(0, 1)
        spread[axis] = random.within(family.slice_blur_mm) / spacing
    image = blur(image, spread).clamp(min=0.01) ** math.exp(family.curve * random.normal())
    image = image * torch.exp(random.within(family.bias) * lattice.noise(random.within(family.bias_mm)))
    if received is not None:
        image = image * received ** random.within(family.coil)
    grain = random.white(lattice.shape)
    if random.chance(0.5):
        grain = blur(grain, 0.6) * 2.2
    return (image + random.within(family.noise) * grain).clamp(min=0)
