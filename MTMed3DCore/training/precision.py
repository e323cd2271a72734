"""Mixed precision on a CPU, kept away from the convolutions for which it gives wrong gradients."""

from __future__ import annotations

import torch
from torch import nn

SMALLEST_SIDE = 4
"""Convolutions over fewer voxels than this along an axis stay in full precision."""


def guard_small_convolutions(network: nn.Module) -> None:
    """Run convolutions over very few voxels in float32 under autocast on a CPU.

    With torch 2.13 the bfloat16 weight gradient of a 3 x 3 x 3 convolution over 2 x 2 x 2 voxels, or of stride 2 over
    one, comes back with memory that was never written: infinite, or NaN, now and then. The deepest levels of the
    network have such sizes in a training patch; there full precision costs nothing.
    """
    guard = _Guard()
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.register_forward_pre_hook(guard.before)
            module.register_forward_hook(guard.after, always_call=True)


class _Guard:
    """Leaves autocast before a convolution over few voxels and returns to it afterwards."""

    def __init__(self) -> None:
        self.left = False

    def before(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        image = inputs[0]
        few = image.device.type == "cpu" and min(image.shape[2:]) < SMALLEST_SIDE
        self.left = few and torch.is_autocast_enabled("cpu")
        if not self.left:
            return None
        torch.set_autocast_enabled("cpu", False)
        return (image.float(), *inputs[1:])

    def after(self, _module: nn.Module, _inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        if self.left:
            torch.set_autocast_enabled("cpu", True)
            self.left = False
