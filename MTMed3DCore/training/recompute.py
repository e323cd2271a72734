"""Gradient checkpointing: activations that are computed again in the backward pass instead of being kept.

Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174), by `torch.utils.checkpoint` and the
option that MONAI's Swin blocks have for it. The gradients are the same.
"""

from __future__ import annotations

from functools import partial

from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch.utils.checkpoint import checkpoint

from MTMed3DCore.networks import TaskNetwork


def recompute_activations(network: TaskNetwork) -> None:
    """Let the Swin blocks and the network's costly parts keep nothing but their inputs.

    Args:
        network: changed in place; its tensors keep their names.
    """
    for module in network.modules():
        if isinstance(module, SwinTransformerBlock):
            module.use_checkpoint = True
    for part in network.costly_parts():
        # An attribute of the instance goes before the class's method, and leaves the state dict as it is.
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
