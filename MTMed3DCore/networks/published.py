"""The authors' checkpoints: their tensor names, and the way to ours.

A checkpoint of the published multi-task model is a state dict of 938 tensors with 48 features. The names and shapes
follow from the network itself, so no list of them is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from MTMed3DCore.networks.multitask import MultiTaskNetwork, build_mtmed3d
from MTMed3DCore.state_dicts import refuse_misfit

_PARTS = {
    "encoder.": "encoder.",
    "segmentation_decoder.": "seg_decoder.",
    "grading_branch.": "cls_decoder.",
    "detection_decoder.": "det_decoder.",
}
"""Our part names and the authors'."""


def published_name(name: str) -> str:
    """The authors' name of one of our tensors."""
    part = next(prefix for prefix in _PARTS if name.startswith(prefix))
    return _PARTS[part] + name.removeprefix(part)


def network_from_published(state_dict: Mapping[str, torch.Tensor]) -> MultiTaskNetwork:
    """A network in evaluation mode that computes what the authors' code computes with these tensors.

    Args:
        state_dict: every tensor of a published multi-task checkpoint, with or without a leading ``module.``.

    Raises:
        ModelRefused: a tensor is missing, unknown or of another shape; the text names it.
    """
    network = build_mtmed3d("published", feature_size=48)
    ours = network.state_dict()
    given = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    wanted = {published_name(name): name for name in ours}
    refuse_misfit(
        given,
        {theirs: ours[name] for theirs, name in wanted.items()},
        code="checkpoint-tensors",
        subject="The checkpoint does not fit the published network",
        remedy="Give the multi-task checkpoint with 48 features that the authors' training code writes.",
    )
    network.load_state_dict({name: given[theirs] for theirs, name in wanted.items()})
    return network.eval()
