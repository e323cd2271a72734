"""The end of a convolution where a map lies voxel by voxel: norm, sum and activation while it is in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch.nn.functional import leaky_relu_

SLOPE = 0.01
"""Of the decoder blocks' leaky ReLU."""
EPSILON = 1e-5
"""Of their instance norms."""
CHUNK_BYTES = 2**20
"""Of a map at a time."""
WIDTH = 48
"""Values of a row that the processor's vector instructions are busy with: voxels with fewer go several a row."""


@dataclass(frozen=True, eq=False)
class Shortcut:
    """What is added to a map after its norm.

    Args:
        source: (B, I, X, Y, Z).
        matrix: (C, I), weight of a 1 x 1 x 1 convolution, and an instance norm, that it goes through; None for I = C.
        normal: whether it goes through an instance norm without a convolution.
    """

    source: torch.Tensor
    matrix: torch.Tensor | None = None
    normal: bool = False


def finish_rows(voxels: torch.Tensor, active: bool, shortcut: Shortcut | None) -> None:
    """Instance norm without affine part, a sum, a leaky ReLU; in place.

    The results of the shortcut's convolution are not kept: their moments follow from those of what it reads.

    Args:
        voxels: (N, C), contiguous.
        active: whether the leaky ReLU follows.
        shortcut: its source lies voxel by voxel as well.
    """
    folded = _folded(voxels)
    rows = voxels.view(-1, folded * voxels.shape[1])
    scale, shift = _affine(rows, folded)
    added, factor, matrix = None, None, None
    if shortcut is not None:
        source = shortcut.source.permute(0, 2, 3, 4, 1).flatten(0, 3)
        added = source.reshape(len(rows), -1)
        if shortcut.matrix is not None:
            matrix, towards = _mixing(source, shortcut.matrix.double())
            matrix = torch.block_diag(*folded * [matrix.to(rows.dtype).t()])
            shift += towards
        elif shortcut.normal:
            factor, towards = _affine(added, folded)
            shift += towards
    scale, shift = (each.to(rows.dtype).repeat(folded) for each in (scale, shift))
    factor = None if factor is None else factor.to(rows.dtype).repeat(folded)
    height = _height(rows)
    for part, other in zip_longest(rows.split(height), () if added is None else added.split(height)):
        torch.addcmul(shift, part, scale, out=part)
        if matrix is not None:
            part.addmm_(other, matrix)
        elif factor is not None:
            part.addcmul_(other, factor)
        elif other is not None:
            part.add_(other)
        if active:
            leaky_relu_(part, SLOPE)


def _affine(rows: torch.Tensor, folded: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What to multiply each channel by and to add to it, so that its mean is zero and its variance one."""
    mean, variance = moments(rows)
    # The voxels of a row are samples of the same channels.
    mean, variance = merged(mean.view(folded, -1), variance.view(folded, -1), mean.new_ones(folded, 1))
    scale = (variance + EPSILON).rsqrt()
    return scale, -mean * scale


def _mixing(source: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Likewise for a 1 x 1 x 1 convolution: its weight so scaled (C, I), and what to add to its results."""
    mean, covariance = mixed_moments(source)
    scale = ((matrix @ covariance) * matrix).sum(1).add_(EPSILON).rsqrt_()
    scaled = scale[:, None] * matrix
    return scaled, -(scaled @ mean)


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) of each column of (N, C), in double precision; sums of a part are in single."""
    parts = rows.split(_height(rows))
    ones = rows.new_ones(1, len(parts[0]))
    buffer = torch.empty_like(parts[0])
    means, variances = [], []
    for part in parts:
        count = ones[:, : len(part)]
        mean = torch.mm(count, part).div_(len(part))
        centred = torch.sub(part, mean, out=buffer[: len(part)])
        variances.append(torch.mm(count, centred.square_()).div_(len(part)))
        means.append(mean)
    counts = torch.tensor([[len(part)] for part in parts], dtype=torch.float64)
    return merged(torch.cat(means).double(), torch.cat(variances).double(), counts)


def merged(means: torch.Tensor, variances: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) of all samples from those of parts (P, C) with so many samples (P, 1) each, after Chan."""
    share = counts / counts.sum()
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def mixed_moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (C,) of the columns of (N, C) and their covariance (C, C), in double precision; for few columns."""
    mean = moments(rows)[0]
    near = mean.to(rows.dtype)
    covariance = mean.new_zeros(len(mean), len(mean))
    for part in rows.split(_height(rows)):
        centred = part - near
        covariance += torch.mm(centred.t(), centred)
    return mean, covariance / len(rows)


def _folded(voxels: torch.Tensor) -> int:
    """Voxels that go into a row."""
    count, channels = voxels.shape
    return next(each for each in range(max(1, WIDTH // channels), 0, -1) if count % each == 0)


def _height(rows: torch.Tensor) -> int:
    """Rows at a time."""
    return max(1, CHUNK_BYTES // (rows.shape[1] * rows.element_size()))
