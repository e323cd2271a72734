"""Seeded random numbers and the smooth fields that anatomy and lesions are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import conv3d, grid_sample, interpolate, pad

Range = tuple[float, float]


class Random:
    """Random numbers of one study: scalars drawn on the CPU, fields drawn on the device.

    Args:
        seed: any whole number; neighbouring seeds give unrelated studies.
        device: of the fields.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        # Small neighbouring seeds give correlated first draws, so they are spread over the whole range first.
        spread = (seed * 0x9E3779B97F4A7C15 + 0x1234567) % (1 << 62)
        self.device = device
        self.scalars = torch.Generator().manual_seed(spread)
        self._fields = self.scalars if device.type == "cpu" else torch.Generator(device).manual_seed(spread)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number between two bounds."""
        return low + (high - low) * float(torch.rand((), generator=self.scalars))

    def within(self, bounds: Range) -> float:
        """A number within a range."""
        return self.uniform(*bounds)

    def normal(self) -> float:
        """A standard normal number."""
        return float(torch.randn((), generator=self.scalars))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number, both bounds included."""
        return int(torch.randint(low, high + 1, (), generator=self.scalars))

    def rotation(self) -> torch.Tensor:
        """A random orthogonal 3 x 3 matrix on the CPU."""
        matrix: torch.Tensor = torch.linalg.qr(torch.randn(3, 3, generator=self.scalars)).Q
        return matrix

    def white(self, shape: Sequence[int]) -> torch.Tensor:
        """White noise of unit variance."""
        return torch.randn(tuple(shape), generator=self._fields, device=self.device)


def blur(field: torch.Tensor, sigma: float | Sequence[float]) -> torch.Tensor:
    """Gaussian blur of a field (X, Y, Z); sigma in voxels, one for all axes or one for each."""
    sigmas = [float(sigma)] * 3 if isinstance(sigma, (int, float)) else list(sigma)
    x = field[None, None]
    for axis, width in enumerate(sigmas):
        if width < 0.15:
            continue
        reach = max(1, math.ceil(2.5 * width))
        offsets = torch.arange(-reach, reach + 1, device=field.device, dtype=field.dtype)
        kernel = torch.exp(-0.5 * (offsets / width) ** 2)
        shape = [-1 if a == axis else 1 for a in range(3)]
        padding = [0] * 6
        padding[2 * (2 - axis)] = padding[2 * (2 - axis) + 1] = reach
        x = conv3d(pad(x, padding, mode="replicate"), (kernel / kernel.sum()).view(shape)[None, None])
    return x[0, 0]


class Lattice:
    """The voxels of a study being made: random numbers and smooth noise on them.

    Args:
        random: source of all draws.
        shape: voxels.
        spacing: millimetres.
    """

    def __init__(self, random: Random, shape: tuple[int, int, int], spacing: float) -> None:
        self.random, self.shape, self.spacing = random, shape, spacing

    def noise(self, length_mm: float) -> torch.Tensor:
        """Smooth noise of unit variance whose correlation length is about `length_mm`.

        Drawn on a lattice just fine enough for that length and interpolated, so long lengths cost little.
        """
        sigma = length_mm / self.spacing
        step = max(1.0, sigma / 1.2)
        coarse = [max(3, math.ceil(n / step) + 3) for n in self.shape]
        field = blur(self.random.white(coarse), sigma / step)
        field = (field - field.mean()) / (field.std() + 1e-6)
        if step > 1.0:
            full = [round((n - 1) * step) + 1 for n in coarse]
            field = interpolate(field[None, None], size=full, mode="trilinear", align_corners=True)[0, 0]
        return field[: self.shape[0], : self.shape[1], : self.shape[2]]

    def noise_at(self, length_mm: float, points: Sequence[torch.Tensor]) -> torch.Tensor:
        """Smooth noise of unit variance, looked up at points (each (X, Y, Z), mm) instead of at the voxels."""
        step = length_mm / 1.5
        reach = max(float(axis.abs().max()) for axis in points) + step
        side = 2 * math.ceil(reach / step) + 1
        field = blur(self.random.white((side, side, side)), 1.5)
        field = (field - field.mean()) / (field.std() + 1e-6)
        places = torch.stack([axis * (2 / ((side - 1) * step)) for axis in reversed(points)], dim=-1)
        sampled: torch.Tensor = grid_sample(field[None, None], places[None], align_corners=True)[0, 0]
        return sampled

    def slope(self, field: torch.Tensor) -> torch.Tensor:
        """Norm of a field's gradient per millimetre, never zero."""
        parts = torch.gradient(field, spacing=self.spacing)
        return torch.sqrt(sum((p * p for p in parts), torch.full_like(field, 1e-6)))

    def sheet(self, length_mm: float, points: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Distance in mm to a folded sheet: the zero set of smooth noise, looked up at `points` if given."""
        field = self.noise(length_mm) if points is None else self.noise_at(length_mm, points)
        return field.abs() / self.slope(field)

    def tubes(self, length_mm: float) -> torch.Tensor:
        """Distance in mm to winding tubes: where two such sheets meet."""
        return torch.sqrt(self.sheet(length_mm) ** 2 + self.sheet(length_mm) ** 2)


def ellipsoid(
    coordinates: Sequence[torch.Tensor], centre: Sequence[float], radii: Sequence[float], power: float = 2.0
) -> torch.Tensor:
    """Roughly signed depth in mm, positive inside, of a superellipsoid."""
    offsets = [c - m for c, m in zip(coordinates, centre, strict=True)]
    terms = [(o / r).abs() ** power for o, r in zip(offsets, radii, strict=True)]
    scaled = (terms[0] + terms[1] + terms[2] + 1e-6) ** (1 / power)
    distance = torch.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2 + 1e-6)
    return distance * (1 / scaled - 1)
