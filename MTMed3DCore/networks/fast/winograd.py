"""Convolutions of 3 x 3 x 3 with half the multiplications on a CPU.

Winograd's minimal filtering F(4, 3) (Lavin and Gray, arXiv 1509.09308) along the first axis: six slices of the input
make six sums, six plane convolutions of 3 x 3 make six products, and these make four slices of the output, where the
direct form takes twelve plane convolutions. In memory a map lies slice by slice, (X, C, Y, Z): then both sums are
products with a small matrix, the six products are one grouped convolution, and nothing is copied.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import conv2d, conv3d, pad

TILE = 4
"""Slices of output that one tile gives."""
REACH = TILE + 2
"""Slices of input that it reads; also its number of plane convolutions."""
LEAST_CHANNELS = 24
"""Below, sums cost more than the products that they save."""
MOST_CHANNELS = 384
"""Above, maps are so small that reading the weights takes the time, and there would be twice as many."""
CHUNK_BYTES = 2**25
"""Of the sums of tiles that are computed at a time; more leaves the processor's cache."""

# Interpolation at 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_KERNEL = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)


def slice_by_slice(x: torch.Tensor) -> torch.Tensor:
    """The same map (1, C, X, Y, Z), in memory slice by slice."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def wants_slices(x: torch.Tensor) -> bool:
    """Whether convolutions of this map, or of one like it, are quicker slice by slice: one image, CPU, fp32.

    A compiler cannot follow the views that they need.
    """
    if torch.compiler.is_compiling():
        return False
    return len(x) == 1 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def slices_of(x: torch.Tensor) -> torch.Tensor | None:
    """A view (X, C, Y, Z) of a map (B, C, X, Y, Z) that lies in memory slice by slice; None where it does not."""
    slices = x[0].transpose(0, 1)
    return slices if len(x) == 1 and slices.is_contiguous() else None


class Convolution(nn.Module):
    """A convolution of 3 x 3 x 3 with zero padding; weight and bias must not change afterwards.

    Args:
        weight: (O, I, 3, 3, 3).
        bias: (O,), or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    transformed: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        weight = weight.detach()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)
        transformed = None
        channels = weight.shape[:2]
        if min(channels) >= LEAST_CHANNELS and max(channels) <= MOST_CHANNELS and weight.dtype == torch.float32:
            matrix = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
            transformed = torch.einsum("kd,oidhw->koihw", matrix, weight.double()).flatten(0, 1).to(weight.dtype)
        self.register_buffer("transformed", transformed, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, I, X, Y, Z) to (B, O, X, Y, Z): by Winograd where `x` lies slice by slice and X is a multiple of four."""
        slices = slices_of(x)
        if slices is None or len(slices) % TILE:
            return conv3d(x, self.weight, self.bias, padding=1)
        if self.transformed is None:
            y = conv3d(x, self.weight, self.bias, padding=1)
            # For the next convolution, which has enough channels.
            return slice_by_slice(y) if y.shape[1] >= LEAST_CHANNELS else y
        y = _filtered(slices, self.transformed)
        if self.bias is not None:
            y += self.bias.view(-1, 1, 1)
        return y.transpose(0, 1)[None]


def _filtered(x: torch.Tensor, transformed: torch.Tensor) -> torch.Tensor:
    """(X, I, Y, Z) to (X, O, Y, Z), chunk by chunk of tiles."""
    depth, inputs, height, width = x.shape
    outputs = len(transformed) // REACH
    sums, products = (torch.tensor(rows, dtype=x.dtype) for rows in (_INPUT, _OUTPUT))
    result = x.new_empty(depth, outputs, height, width)
    plane = inputs * height * width
    step = TILE * max(1, CHUNK_BYTES // (REACH * plane * x.element_size()))
    for first in range(0, depth, step):
        last = min(depth, first + step)
        part = x[max(first - 1, 0) : min(last + 1, depth)]
        before, after = int(first == 0), int(last == depth)
        if before or after:
            part = pad(part, (0, 0, 0, 0, 0, 0, before, after))
        tiles = (last - first) // TILE
        reached = part.as_strided((tiles, REACH, plane), (TILE * plane, plane, 1), part.storage_offset())
        filtered = conv2d(
            torch.matmul(sums, reached).view(tiles, REACH * inputs, height, width), transformed, padding=1, groups=REACH
        )
        torch.matmul(products, filtered.view(tiles, REACH, -1), out=result[first:last].view(tiles, TILE, -1))
    return result
