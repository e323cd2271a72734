"""Which task a tensor of a network serves."""

from __future__ import annotations

PARTS = {
    "segmentation_decoder": "segmentation",
    "detection_decoder": "detection",
    "grading_branch": "grading",
    "grading_head": "grading",
}
"""First part of a tensor's name and its task, in every family of networks; all others are shared."""


def owner(name: str, tasks: tuple[str, ...]) -> str | None:
    """The task of a decoder's tensor, None for a shared one.

    Args:
        name: in the network's state dict.
        tasks: of the network. A segmentation decoder in a network that does not segment feeds the grading.
    """
    task = PARTS.get(name.partition(".")[0])
    if task == "segmentation" and task not in tasks:
        return "grading"
    return task
