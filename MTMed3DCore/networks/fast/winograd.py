"""Convolutions of 3 x 3 x 3 with a quarter of the multiplications on a CPU.

Winograd's minimal filtering F(4, 3) (Lavin and Gray, arXiv 1509.09308) along the first two axes: a tile of six by six
lines of the input makes 36 sums, each is convolved along its line alone, and the 36 products make four by four lines of
the output, where the direct form takes 144 products of lines. In memory a map lies voxel by voxel, (X, Y, Z, C): then
the sums are products with a small matrix, a convolution along lines is three matrix products, and a tile stays in the
processor's cache from its first sum to its last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import conv3d

TILE = 4
"""Lines of output along an axis that one tile gives."""
TAPS = 3
REACH = TILE + TAPS - 1
"""Lines of input along an axis that it reads."""
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
"""Places of interpolation, and infinity. With the usual 0, 1, -1, 2, -2 rounding errors are four times as large."""
LEAST_CHANNELS = 24
"""Below, sums cost more than the products that they save."""
MOST_CHANNELS = 256
"""Above, maps are so small that reading the weights takes the time, and there would be four times as many."""


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same map (B, C, X, Y, Z), in memory voxel by voxel."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def wants_channels_last(x: torch.Tensor) -> bool:
    """Whether convolutions of this map, or of one like it, are quicker voxel by voxel: one image, CPU, fp32.

    A compiler cannot follow the views that they need.
    """
    if torch.compiler.is_compiling():
        return False
    return len(x) == 1 and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def voxels_of(x: torch.Tensor) -> torch.Tensor | None:
    """A view (X, Y, Z, C) of a map (B, C, X, Y, Z) that lies in memory voxel by voxel; None where it does not."""
    voxels = x[0].permute(1, 2, 3, 0)
    return voxels if len(x) == 1 and voxels.is_contiguous() else None


def map_of(voxels: torch.Tensor) -> torch.Tensor:
    """The map (1, C, X, Y, Z) whose view (X, Y, Z, C) is given."""
    # The image's axis first: its stride tells torch in what order a map of one image lies.
    return voxels[None].permute(0, 4, 1, 2, 3)


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
            of_kernel = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
            products = torch.einsum("px,qy,oixyz->zpqio", of_kernel, of_kernel, weight.double())
            transformed = products.flatten(1, 2).to(weight.dtype).contiguous()
        self.register_buffer("transformed", transformed, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, I, X, Y, Z) to (B, O, X, Y, Z), which lies in memory as `x` does.

        By Winograd where `x` lies voxel by voxel, and X and Y are multiples of four.
        """
        voxels = voxels_of(x)
        if voxels is None or self.transformed is None or x.shape[2] % TILE or x.shape[3] % TILE:
            y = conv3d(x, self.weight, self.bias, padding=1)
            return y if voxels is None else channels_last(y)  # torch forgets it of small maps
        y = _filtered(voxels, self.transformed)
        if self.bias is not None:
            y += self.bias
        return map_of(y)


def _filtered(x: torch.Tensor, transformed: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z, I) to (X, Y, Z, O), tile by tile; `transformed` (3, 36, I, O)."""
    depth, height, length, inputs = x.shape
    outputs = transformed.shape[-1]
    of_input, of_output = (torch.tensor(rows, dtype=x.dtype) for rows in (_INPUT, _OUTPUT))
    result = x.new_empty(depth, height, length, outputs)
    slices = result.view(depth, -1)
    row, line = (length + 2) * inputs, length * outputs
    slab = x.new_zeros(REACH, height + 2, length + 2, inputs)
    half = x.new_empty(REACH, REACH * row)
    sums = x.new_empty(REACH, REACH, row)
    shifted = [sums.view(REACH * REACH, length + 2, inputs).narrow(1, tap, length) for tap in range(TAPS)]
    products = x.new_empty(REACH * REACH, length, outputs)
    back = x.new_empty(REACH, TILE, line)
    for first in range(0, depth, TILE):
        # Two slices of the last tiles are the first of these; before the first and after the last, there are zeros.
        kept = REACH - TILE if first else 1
        slab[:kept] = slab[TILE : TILE + kept]
        fresh = x[first + kept - 1 : first + TILE + 1]
        slab[kept : kept + len(fresh), 1:-1, 1:-1] = fresh
        slab[kept + len(fresh) :] = 0
        for across in range(0, height, TILE):
            torch.mm(of_input, slab.view(REACH, -1)[:, across * row : (across + REACH) * row], out=half)
            torch.bmm(of_input.expand(REACH, -1, -1), half.view(REACH, REACH, row), out=sums)
            torch.bmm(shifted[0], transformed[0], out=products)
            for tap in range(1, TAPS):
                products.baddbmm_(shifted[tap], transformed[tap])
            torch.bmm(of_output.expand(REACH, -1, -1), products.view(REACH, REACH, line), out=back)
            target = slices[first : first + TILE, across * line : (across + TILE) * line]
            torch.mm(of_output, back.view(REACH, -1), out=target)
    return result


def _vandermonde(powers: int) -> npt.NDArray[np.float64]:
    """Values of a polynomial with so many coefficients at the places of interpolation; at infinity, its last one."""
    finite = np.vander(POINTS, powers, increasing=True)
    return np.vstack([finite, np.eye(powers)[-1]])


# Toom and Cook's product of polynomials, transposed: outputs are `_OUTPUT @ ((_KERNEL @ kernel) * (_INPUT @ input))`.
_INPUT = np.linalg.inv(_vandermonde(REACH)).T
_KERNEL = _vandermonde(TAPS)
_OUTPUT = _vandermonde(TILE).T
