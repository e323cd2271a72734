"""The end of a convolution where a map lies voxel by voxel: norm, sum and activation while it is in the cache."""

from __future__ import annotations

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


def finish_rows(voxels: torch.Tensor, added: torch.Tensor | None, active: bool) -> None:
    """Instance norm without affine part, a sum, a leaky ReLU; in place.

    Args:
        voxels: (N, C), contiguous.
        added: after the norm, (N, C).
        active: whether the leaky ReLU follows.
    """
    channels = voxels.shape[1]
    folded = next(count for count in range(max(1, WIDTH // channels), 0, -1) if len(voxels) % count == 0)
    rows = voxels.view(-1, folded * channels)
    mean, variance = moments(rows)
    # The voxels of a row are samples of the same channels.
    mean, variance = merged(mean.view(folded, -1), variance.view(folded, -1), mean.new_ones(folded, 1))
    factor = (variance + EPSILON).rsqrt()
    scale, shift = (each.to(rows.dtype).repeat(folded) for each in (factor, -mean * factor))
    parts = _parts(rows)
    others = [None] * len(parts) if added is None else _parts(added.reshape(rows.shape))
    for part, other in zip(parts, others, strict=True):
        torch.addcmul(shift, part, scale, out=part)
        if other is not None:
            part.add_(other)
        if active:
            leaky_relu_(part, SLOPE)


def moments(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (C,) of each column of (N, C), in double precision; sums of a part are in single."""
    parts = _parts(rows)
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


def _parts(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rows.split(max(1, CHUNK_BYTES // (rows.shape[1] * rows.element_size())))
