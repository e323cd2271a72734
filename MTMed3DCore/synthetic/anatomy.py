"""A brain without tumour: hull, cortex, deep grey matter, ventricles and what enhances normally.

Implicit surfaces in head coordinates, posed, scaled and warped at random; no atlas and no patient goes in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from MTMed3DCore.synthetic.family import Family
from MTMed3DCore.synthetic.fields import Lattice, ellipsoid

Coordinates = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Head:
    """Coordinates and the brain's outer surface.

    Args:
        coordinates: mm to the right, to posterior and to superior of the brain's middle, warped by the study's shape.
        hull: depth in mm below the brain surface, negative outside.
        cerebellum: depth difference between cerebellum and cerebrum, positive in the cerebellum.
        stem: depth in mm inside the brainstem.
    """

    coordinates: Coordinates
    hull: torch.Tensor
    cerebellum: torch.Tensor
    stem: torch.Tensor

    @property
    def brain(self) -> torch.Tensor:
        """Bool (X, Y, Z)."""
        return self.hull > 0


@dataclass(frozen=True)
class Tissue:
    """Shares of tissue in every voxel, 0 to 1, and structures that matter for contrast.

    Args:
        fluid, grey, white: sum to one.
        deep_grey: basal ganglia and thalamus.
        ventricle: share of ventricular fluid.
        lesions_of_age: white matter hyperintensity.
        vessels, dura, choroid: what enhances in every brain; the dura includes falx, tentorium and sinus.
    """

    fluid: torch.Tensor
    grey: torch.Tensor
    white: torch.Tensor
    deep_grey: torch.Tensor
    ventricle: torch.Tensor
    lesions_of_age: torch.Tensor
    vessels: torch.Tensor
    dura: torch.Tensor
    choroid: torch.Tensor


def make_head(lattice: Lattice) -> Head:
    """A head of random pose, size and shape; array axes are R, A, S."""
    random = lattice.random
    axes = [
        (torch.arange(n, device=random.device, dtype=torch.float32) - (n - 1) / 2) * lattice.spacing
        for n in lattice.shape
    ]
    x, y, z = torch.meshgrid(axes[0], -axes[1], axes[2], indexing="ij")
    below = z + (lattice.shape[2] - 1) / 2 * lattice.spacing
    a, b, c = (math.radians(random.normal() * degrees) for degrees in (3, 5, 3))
    x, y = x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)
    y, z = y * math.cos(b) - z * math.sin(b), y * math.sin(b) + z * math.cos(b)
    x, z = x * math.cos(c) - z * math.sin(c), x * math.sin(c) + z * math.cos(c)
    size = random.uniform(0.88, 1.03)
    warp = random.uniform(1.5, 4.0)
    x = x / (size * random.uniform(0.96, 1.04)) + random.uniform(-2, 2) + warp * lattice.noise(22)
    y = y / (size * random.uniform(0.95, 1.05)) + random.uniform(-5, 5) + warp * lattice.noise(22)
    z = z / (size * random.uniform(0.95, 1.05)) + random.uniform(-5, 5) + warp * lattice.noise(22)
    cerebrum = ellipsoid((x, y, z), (0, 0, 12), (66, 84, 58), 2.3)
    cerebrum = torch.minimum(cerebrum, (z + 27 + 0.10 * (y.abs() - 30)) * 0.95)  # its flat base
    temporal = ellipsoid((x.abs(), y, z), (42, -4, -27), (24, 42, 22))
    cerebellum = ellipsoid((x, y, z), (0, 42, -36), (56, 38, 29), 2.3)
    stem = ellipsoid((x, y, z), (0, 14, -42), (17, 18, 38), 2.4)
    upper = torch.maximum(cerebrum, temporal)
    hull = torch.maximum(upper, torch.maximum(cerebellum, stem)) + random.uniform(0.3, 1.2) * lattice.noise(7)
    # Scans end somewhere below the brain.
    hull = torch.minimum(hull, below - random.uniform(0, 8))
    return Head((x, y, z), hull, cerebellum - upper, stem)


def make_tissue(lattice: Lattice, family: Family, head: Head, displaced: Coordinates, pressed: torch.Tensor) -> Tissue:
    """Tissue of a head.

    Args:
        displaced: head coordinates after the push of the lesions.
        pressed: 0 to 1, how far sulci are squeezed shut.
    """
    random, spacing = lattice.random, lattice.spacing
    x, y, z = displaced
    depth = head.hull.clamp(min=0)
    atrophy = random.within(family.atrophy)
    sulci, fissure, sylvian = _furrows(lattice, head, displaced, depth)
    width = (0.15 + 0.8 * atrophy) * torch.exp(0.7 * lattice.noise(11)) * (1 - 0.9 * pressed)
    to_fluid = torch.minimum(sulci - width, torch.minimum(fissure - width * 0.8 - 0.2, sylvian - width * 1.1))
    rim = random.uniform(0.0, 1.6) * (0.4 + atrophy) * torch.exp(0.5 * lattice.noise(8))
    to_fluid = torch.minimum(to_fluid, head.hull - rim)
    soft = random.uniform(0.9, 1.8)
    fluid = torch.sigmoid(-to_fluid / (0.35 * spacing))
    grey = (1 - fluid) * torch.sigmoid((random.uniform(2.6, 4.2) - to_fluid) / soft)
    # The cerebellum's folia are too fine to draw: mostly grey, white inside. The brainstem is mostly white.
    cerebellar = torch.sigmoid(head.cerebellum / 2)
    folia = 0.5 + 0.14 * torch.tanh(1.5 * lattice.noise(2.4))
    folia = (folia + 0.5 * torch.sigmoid((11 - depth) / 3) - 0.12).clamp(0, 1)
    grey = (1 - cerebellar) * grey + cerebellar * (1 - 0.6 * fluid) * folia
    fluid = fluid * (1 - 0.6 * cerebellar)
    in_stem = torch.sigmoid((head.stem - 2) / 1.5) * (z < -14)
    grey, fluid = grey * (1 - in_stem) + 0.25 * in_stem, fluid * (1 - in_stem)
    deep = torch.maximum(
        ellipsoid((x.abs(), y, z), (12, 8, 6), (9, 14, 9)),
        torch.maximum(
            ellipsoid((x.abs(), y, z), (25, -6, 4), (6.5, 17, 10)),
            ellipsoid((x.abs(), y, z), (14, -24, 12), (5, 11, 9)),
        ),
    )
    deep = torch.sigmoid((deep + 0.6 * lattice.noise(6)) / soft) * random.uniform(0.5, 0.95)
    grey = torch.maximum(grey, deep * (1 - fluid))
    scale = random.within(family.ventricles)
    lateral, ventricle = _ventricles(lattice, displaced, scale)
    cistern = ellipsoid((x, y, z), (0, -12, -22), (16, 13, 7)) + 3 * lattice.noise(6)
    ambient = torch.minimum(head.stem + 5, -head.stem) - 1.2 + 1.5 * lattice.noise(5)
    ambient = ambient - 5 * (z > 4).float() - 5 * (z < -60).float()
    cisterns = torch.sigmoid(torch.maximum(cistern, ambient) / (0.5 * spacing))
    fluid = torch.maximum(fluid, torch.maximum(ventricle, cisterns))
    grey = grey * (1 - fluid)
    white = (1 - fluid - grey).clamp(min=0)
    vessels = _vessels(lattice, depth, fissure, sylvian)
    dura = _dura(lattice, family, head, fissure, depth)
    choroid = ellipsoid((x.abs(), y, z), (17 + 2 * scale, 26, 14), (3.5, 9, 4.5)) + lattice.noise(3)
    choroid = torch.sigmoid(choroid / 0.8) * (ventricle > 0.3)
    aged = _lesions_of_age(lattice, lateral) * white
    return Tissue(fluid, grey, white, deep, ventricle, aged, vessels, dura, choroid)


def _furrows(
    lattice: Lattice, head: Head, displaced: Coordinates, depth: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distance in mm to sulci, to the interhemispheric fissure and to the Sylvian fissures."""
    random = lattice.random
    x, y, z = displaced
    # Sulci run inwards from the surface: their sheets vary along it, hardly with depth. Deep ones, then shallow ones.
    outwards = torch.sqrt(x**2 + (0.8 * y) ** 2 + (1.1 * (z - 8)) ** 2 + 1.0)
    flattened = (outwards / 62) ** -random.uniform(0.35, 0.7)
    bend = random.uniform(1.5, 3.5)
    surface = [axis * flattened + bend * lattice.noise(6) for axis in (x, y, z - 8)]
    furrows = []
    for wavelength, low, high in ((random.uniform(3.6, 4.8), 18, 32), (random.uniform(2.6, 3.4), 6, 14)):
        bottom = random.uniform(low, high) + 0.3 * low * lattice.noise(12)
        furrows.append(torch.sqrt(lattice.sheet(wavelength, surface) ** 2 + (depth - bottom).clamp(min=0) ** 2))
    sulci = torch.minimum(furrows[0], furrows[1] + random.uniform(0.1, 0.6))
    floor = 14 + random.uniform(0, 8) - (z - 0.0016 * y**2 + random.uniform(-3, 3)) - 0.004 * y**2
    fissure = torch.sqrt((x + 0.8 * lattice.noise(9)) ** 2 + floor.clamp(min=0) ** 2 * (y.abs() < 62).float())
    fissure = fissure + 50 * (head.coordinates[2] < -18).float()
    plane = 0.85 * (z + 4 - 0.5 * (y + 5)) + 3.5 * lattice.noise(8)
    inner = (34 - head.coordinates[0].abs()).clamp(min=0)
    sylvian = torch.sqrt(plane**2 + inner**2 + ((y + 2).abs() - 26).clamp(min=0) ** 2)
    return sulci, fissure, sylvian


def _ventricles(lattice: Lattice, displaced: Coordinates, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth in mm inside the lateral ventricles, and the share of ventricular fluid."""
    x, y, z = displaced
    sides = x.abs()
    # Horns and body are one tube that parts from the midline and sinks at both ends, widest in the frontal horn.
    along = sides - 0.006 * (y + 4) ** 2
    sunk = z + 0.006 * (y - 4) ** 2
    lateral = ellipsoid((along, y, sunk), (6.5 + 3.5 * scale, 0, 22), (5.2 * scale, 36, 6.8 * scale**0.8), 2.4)
    lateral = torch.maximum(
        lateral, ellipsoid((along, y, sunk), (8 + 4 * scale, -22, 19), (5 * scale, 12, 8.5 * scale))
    )
    lateral = torch.maximum(lateral, ellipsoid((sides, y, z), (22 + 2 * scale, 38, 12), (3.6 * scale, 17, 7 * scale)))
    lateral = torch.maximum(lateral, ellipsoid((sides, y, z), (33, 10, -18), (3.2 * scale, 20, 3.5 * scale)))
    third = ellipsoid((x, y, z), (0, 4, 4), (1.4 * scale + 0.7, 15, 11))
    fourth = ellipsoid((x, y, z), (0, 31, -34), (6, 4.5, 11))
    every = torch.maximum(lateral, torch.maximum(third, fourth)) + lattice.random.uniform(0.3, 1.5) * lattice.noise(6)
    return lateral, torch.sigmoid(every / (0.4 * lattice.spacing))


def _lesions_of_age(lattice: Lattice, lateral: torch.Tensor) -> torch.Tensor:
    """Caps round the ventricles and spots in the white matter that are bright on FLAIR without being tumour."""
    random = lattice.random
    if not random.chance(0.6):
        return torch.zeros_like(lateral)
    load = random.uniform()
    caps = torch.exp(-(-lateral).clamp(min=0) / random.uniform(1.0, 4.0)) * (lateral < 0.5) * load
    spots = torch.sigmoid((lattice.noise(random.uniform(2.5, 5)) - (3.1 - 0.9 * load)) / 0.12)
    return (caps * random.uniform(0.3, 1.0) + spots).clamp(0, 1)


def _vessels(lattice: Lattice, depth: torch.Tensor, fissure: torch.Tensor, sylvian: torch.Tensor) -> torch.Tensor:
    random = lattice.random
    near = (torch.sigmoid((7 - depth) / 2.5) + (fissure < 4).float() + (sylvian < 4).float()).clamp(0, 1)
    large = torch.sigmoid((random.uniform(0.7, 1.7) - lattice.tubes(9)) / 0.6)
    small = torch.sigmoid((random.uniform(0.2, 1.0) - lattice.tubes(5)) / 0.6) * random.uniform(0.3, 1)
    return torch.maximum(large, small) * near


def _dura(lattice: Lattice, family: Family, head: Head, fissure: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    random = lattice.random
    x, _, z = head.coordinates
    patchy = torch.sigmoid(2 * (lattice.noise(9) - random.uniform(-0.6, 2.0)))
    convexity = torch.sigmoid((random.uniform(0.6, 2.2) - head.hull) / 0.8) * patchy
    sinus = torch.sigmoid((3.0 - torch.sqrt(x**2 + (head.hull - 1) ** 2)) / 0.8) * (z > -5) * (head.cerebellum < 3)
    tentorium = torch.exp(-((head.cerebellum.abs() / 1.5) ** 2)) * (z > -40) * (depth < 30)
    tentorium = tentorium * torch.sigmoid(2 * lattice.noise(6) - 1)
    falx = torch.exp(-((fissure / 1.2) ** 2)) * torch.sigmoid(2 * lattice.noise(8) - random.uniform(0, 2))
    parts = [convexity * random.uniform(0.5, 0.9), sinus * random.uniform(0.7, 1.0)]
    parts += [tentorium * random.uniform(0.3, 0.8), falx * random.uniform(0.3, 0.8)]
    if family.wide_sinuses and random.chance(family.wide_sinuses):
        parts.append(_wide_sinuses(lattice, head) * random.uniform(0.7, 1.0))
    return torch.stack(parts).amax(dim=0)


def _wide_sinuses(lattice: Lattice, head: Head) -> torch.Tensor:
    """Share of the sagittal sinus down to the torcula and of the transverse ones, along the tentorium's outer edge."""
    random = lattice.random
    x, y, z = head.coordinates
    beside = torch.sqrt(x**2 + (head.hull - 1) ** 2)
    sagittal = torch.sigmoid((random.uniform(3.0, 6.5) - beside) / 0.8) * (z > -22) * (head.cerebellum < 6)
    along = torch.sqrt((head.cerebellum - random.uniform(-2, 2)) ** 2 + (head.hull - 2) ** 2)
    width = random.uniform(1.0, 5.0) + random.uniform(-1.5, 1.5) * torch.tanh(x / 10)  # seldom alike
    transverse = torch.sigmoid((width - along) / 0.8) * (y > 10) * (z < 0)
    return torch.maximum(sagittal, transverse)
