"""The grading branch: a DenseNet-121 (Huang et al., arXiv 1608.06993; MONAI's) over the segmentation."""

from __future__ import annotations

import torch
from monai.networks.nets import DenseNet121
from torch import nn

from MTMed3DCore.networks.unetr import REGIONS

GRADES = ("LGG", "HGG")
"""Meaning of the two output logits."""
_PUBLISHED_FEATURE_SIZE = 48
"""The DenseNet's own widths belong to this encoder width; other widths scale with it."""


class GradingBranch(nn.Module):
    """From segmentation logits to two grade logits.

    Args:
        feature_size: the encoder's; the DenseNet's widths scale with it.
        published: feed raw logits through batch norms, as published. Otherwise the branch sees probabilities, whose
            range does not drift as the segmentation trains; group norms, which mean the same at batch size one in
            training and in use; and, since norms hide amounts, a linear term in the logarithms of the regions' volumes.
    """

    def __init__(self, feature_size: int, *, published: bool) -> None:
        super().__init__()
        self.published = published
        scale = 1.0 if published else feature_size / _PUBLISHED_FEATURE_SIZE
        self.head = DenseNet121(
            spatial_dims=3,
            in_channels=len(REGIONS),
            out_channels=len(GRADES),
            init_features=round(64 * scale),
            growth_rate=round(32 * scale),
            norm="batch" if published else ("group", {"num_groups": 4}),
        )
        self.amounts = None if published else nn.Linear(len(REGIONS), len(GRADES))

    def forward(self, segmentation: torch.Tensor) -> torch.Tensor:
        """Segmentation logits (B, 3, X, Y, Z) to grade logits (B, 2) in the order of `GRADES`."""
        if self.amounts is None:
            published: torch.Tensor = self.head(segmentation)
            return published
        probabilities = torch.sigmoid(segmentation)
        # Only what is likelier than not counts: a faint probability over a whole brain would outweigh a small tumour.
        volumes = torch.relu(2 * probabilities.float() - 1).sum(dim=(2, 3, 4))
        logits: torch.Tensor = self.head(probabilities) + self.amounts(torch.log1p(volumes))
        return logits
