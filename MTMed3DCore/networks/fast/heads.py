"""RetinaNet's heads with quicker convolutions: the same function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import group_norm

from MTMed3DCore.networks.fast.winograd import Convolution, channels_last, wants_channels_last


class _Normalised(nn.Module):
    """One convolution of a head with its group norm and ReLU.

    Args:
        convolution, norm: of the head; they must not change afterwards.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, convolution: Any, norm: Any) -> None:
        super().__init__()
        self.convolution = Convolution(convolution.weight, convolution.bias)
        self.register_buffer("scale", norm.weight.detach(), persistent=False)
        self.register_buffer("shift", norm.bias.detach(), persistent=False)
        self.groups, self.eps = norm.num_groups, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.convolution.transformed is not None and wants_channels_last(x):
            x = channels_last(x)
        y = self.convolution(x)
        return group_norm(y, self.groups, self.scale, self.shift, self.eps).relu_()


class FusedHeads(nn.Module):
    """Both heads of a detection decoder, for use without gradients.

    Args:
        heads: for the classification and the regression, the convolutions with norms (MONAI's ``conv``, a sequence of
            convolution, group norm, ReLU) and the last convolution; they must not change afterwards.
    """

    def __init__(self, heads: Sequence[tuple[Any, Any]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(_Normalised(layers[k], layers[k + 1]) for k in range(0, len(layers), 3)),
                Convolution(last.weight, last.bias),
            )
            for layers, last in heads
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One map (B, C, X, Y, Z) of the pyramid to score logits (B, A, X, Y, Z) and deltas (B, 6A, X, Y, Z)."""
        scores, deltas = (head(x) for head in self.heads)
        return scores, deltas
