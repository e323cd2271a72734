"""A narrow network's function in a wider network, so that a large one without training of its own says something.

Every channel of the narrow network stands several times in the wide one, and what reads it divides by their number
(Chen et al., Net2Net, arXiv 1511.05641): the wide network has the size, the time and the memory of its kind, and the
narrow one's numbers, to within rounding.
"""

from __future__ import annotations

import math

import torch

from MTMed3DCore.networks import MultiTaskNetwork, build_network

BIAS_TABLE = "relative_position_bias_table"
TRANSPOSED = "transp_conv"
"""In the names of weights whose first axis is what they read; of all others it is the second."""


def widened(narrow: MultiTaskNetwork, feature_size: int) -> MultiTaskNetwork:
    """A network of more features that computes what a narrow one does.

    Args:
        narrow: with learned weights.
        feature_size: a multiple of the narrow network's.

    Returns:
        In evaluation mode, on the CPU.
    """
    wide = build_network("mtmed3d", feature_size, narrow.tasks, narrow.num_anchors)
    weights = narrow.state_dict()
    wide.load_state_dict({name: _widened(name, weights[name].cpu(), like) for name, like in wide.state_dict().items()})
    return wide.eval()


def _widened(name: str, narrow: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor with each channel repeated beside itself, as often as the wide one's shape says."""
    times = [large // small for large, small in zip(like.shape, narrow.shape, strict=True)]
    wide = narrow
    for axis, count in enumerate(times):
        wide = wide.repeat_interleave(count, axis)
    if narrow.dim() >= 2 and not name.endswith(BIAS_TABLE):
        wide = wide / times[0 if TRANSPOSED in name else 1]
    if ".attn.qkv." in name:
        # Queries meet keys in as many times more products, and the scale of longer heads is smaller by the root alone.
        rows = len(wide) // 3
        wide = torch.cat([wide[:rows] / math.sqrt(times[0]), wide[rows:]])
    return wide
