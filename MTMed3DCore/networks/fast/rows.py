"""The end of a convolution where a map lies voxel by voxel: norm, sum and activation while it is in the cache."""

from __future__ import annotations

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


def finish_rows(
    voxels: torch.Tensor, active: bool, added: torch.Tensor | None = None, matrix: torch.Tensor | None = None
) -> None:
    """Instance norm without affine part, a sum, a leaky ReLU; in place.

    Args:
        voxels: (N, C), contiguous.
        active: whether the leaky ReLU follows.
        added: after the norm: (N, C), or (N, I) that goes through a convolution of 1 x 1 x 1 with a norm of its own.
        matrix: (C, I), the weight of that convolution. Its results are not kept: their moments follow from those of
            what it reads.
    """
    channels = voxels.shape[1]
    folded = _folded(voxels)
    rows = voxels.view(-1, folded * channels)
    mean, variance = moments(rows)
    # The voxels of a row are samples of the same channels.
    mean, variance = merged(mean.view(folded, -1), variance.view(folded, -1), mean.new_ones(folded, 1))
    scale = (variance + EPSILON).rsqrt()
    shift = -mean * scale
    if matrix is not None:
        assert added is not None
        matrix = matrix.double()
        centre, covariance = mixed_moments(added)
        theirs = ((matrix @ covariance) * matrix).sum(1).add_(EPSILON).rsqrt_()
        matrix = theirs[:, None] * matrix
        shift -= matrix @ centre
        matrix = torch.block_diag(*folded * [matrix.to(rows.dtype).t()])
    scale, shift = (each.to(rows.dtype).repeat(folded) for each in (scale, shift))
    height = _height(rows)
    others = [] if added is None else added.reshape(len(rows), -1).split(height)
    for part, other in zip_longest(rows.split(height), others):
        torch.addcmul(shift, part, scale, out=part)
        if matrix is not None:
            part.addmm_(other, matrix)
        elif other is not None:
            part.add_(other)
        if active:
            leaky_relu_(part, SLOPE)


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
