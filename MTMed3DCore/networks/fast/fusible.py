"""Parts of a network that have a second form, multiplied out, for use without gradients."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import nn


class Fusible(nn.Module):
    """A part that keeps its multiplied-out form beside its weights until these may change."""

    fused: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.fused = None
        self.register_load_state_dict_post_hook(_drop_fused)

    @abstractmethod
    def fuse(self) -> nn.Module | None:
        """The multiplied-out form of the present weights, with no parameters of its own; None where there is none."""

    def multiply_out(self) -> None:
        """Fuse for use without gradients; loading weights or training drops the fused form."""
        self.fused = self.fuse()

    def usable_form(self) -> nn.Module | None:
        """The fused form where there is one and no gradient is wanted."""
        return None if torch.is_grad_enabled() else self.fused

    def train(self, mode: bool = True) -> Self:
        """As of every module; fused weights would go stale in training."""
        if mode:
            self.fused = None
        return super().train(mode)


def _drop_fused(part: Any, _: object) -> None:
    """Weights that came in later make the fused ones stale."""
    part.fused = None
