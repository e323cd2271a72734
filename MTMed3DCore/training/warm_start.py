"""The encoder's start from MONAI's self-supervised Swin UNETR weights (Tang et al., arXiv 2111.14791).

The file, published by MONAI as ``model_swinvit.pt``, holds ``{"state_dict": ...}`` with tensors such as
``module.layers1.0.blocks.0.mlp.fc1.weight``, the names of MONAI's `SwinUNETR.load_from`. Files of the pre-training code
have another prefix (``module.swin_vit.``, ``swinViT.``) and the heads of the pretext tasks beside the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from MTMed3DCore.errors import ModelRefused
from MTMed3DCore.hashing import file_sha256
from MTMed3DCore.networks.swin import PUBLISHED_OFFSETS

PREFIX = re.compile(r"^(?:module\.)?(?:swin_vit\.|swinViT\.|encoder\.)?")
REMEDY = "Give the self-supervised Swin UNETR weights that MONAI publishes, with --feature-size 48."
PATCH_EMBEDDING = "patch_embed.proj.weight"
MERGE = re.compile(r"^layers\d\.0\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)$")


@dataclass(frozen=True)
class WarmStart:
    """What a file gave.

    Args:
        sha256: of the file.
        taken: tensors of the encoder that now have the file's values.
        missing: tensors of the encoder that the file does not hold.
        left: tensors of the file that the encoder has no use for.
        notes: how tensors were changed on the way, in words.
    """

    sha256: str
    taken: tuple[str, ...]
    missing: tuple[str, ...]
    left: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        told = [f"{len(self.taken)} of {len(self.taken) + len(self.missing)} tensors of the encoder were taken"]
        if self.missing:
            told.append(f"{len(self.missing)} keep their random start ({_some(self.missing)})")
        if self.left:
            told.append(f"{len(self.left)} of the file were left ({_some(self.left)})")
        return "; ".join([*told, *self.notes]) + "."


def start_encoder(encoder: nn.Module, path: Path) -> WarmStart:
    """Give an encoder the weights of a file; read without running any code that the file may hold.

    Args:
        encoder: of the `mtmed3d` preset.
        path: file of weights.

    Raises:
        ModelRefused: ``encoder-weights``, a file that cannot be read, or whose blocks do not fit the encoder.
    """
    given = _read(path)
    wanted = {name: tensor for name, tensor in encoder.state_dict().items() if not name.endswith("position_index")}
    if PATCH_EMBEDDING not in wanted:
        raise ModelRefused("encoder-weights", "The network has no Swin encoder that could start from a file.", REMEDY)
    taken: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    left = []
    for theirs, tensor in given.items():
        name = PREFIX.sub("", theirs).replace(".mlp.fc", ".mlp.linear")
        if name not in wanted:
            left.append(theirs)
            continue
        taken[name] = tensor
    sequences = wanted[PATCH_EMBEDDING].shape[1]
    embedding = taken.get(PATCH_EMBEDDING)
    if embedding is not None and embedding.ndim == 5 and embedding.shape[1] == 1:
        taken[PATCH_EMBEDDING] = embedding.repeat(1, sequences, 1, 1, 1) / sequences
        notes.append(f"the patch embedding of one channel serves each of {sequences} sequences by a share")
    for name, tensor in taken.items():
        if tensor.shape != wanted[name].shape or not torch.isfinite(tensor).all():
            text = f"{path} does not fit: {name} has shape {list(tensor.shape)}, not {list(wanted[name].shape)}"
            raise ModelRefused("encoder-weights", f"{text}, or is not finite.", REMEDY)
    merges = [name for name in taken if MERGE.match(name)]
    for name in merges:
        taken[name] = _complete_merge(name, taken[name])
    if merges:
        notes.append("patch merging was brought from the order in which it was trained to the complete one")
    if not any(".blocks." in name for name in taken):
        text = f"{path} holds no block of a Swin encoder, but {_some(tuple(given)) or 'nothing'}."
        raise ModelRefused("encoder-weights", text, REMEDY)
    encoder.load_state_dict(taken, strict=False)
    missing = tuple(sorted(set(wanted) - set(taken)))
    left = [name for name in left if not name.endswith("position_index")]
    return WarmStart(file_sha256(path), tuple(sorted(taken)), missing, tuple(sorted(left)), tuple(notes))


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        return {str(name): tensor.float() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # torch raises whatever the damage leads to
        raise ModelRefused("encoder-weights", f"{path} cannot be read: {error}.", REMEDY) from error


def _complete_merge(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of a merge, from the eight sub-lattices that were read in training to all eight.

    The weights come from MONAI 0.8 and 0.9, whose merge read two sub-lattices twice and two never. In the reduction
    the columns of one that was read twice are added up, and those of one that was never read start at zero; in the
    norm before it, values of one read twice are averaged, and one never read has the mean of all. So the merge begins
    close to the function that was trained, and the gradient reaches every column.
    """
    parts = tensor.chunk(8, dim=-1)
    combine, unread = (
        (torch.sum, torch.zeros_like(parts[0]))
        if name.endswith("reduction.weight")
        else (torch.mean, torch.stack(parts).mean(0))
    )
    whole = []
    for offset in product(range(2), repeat=3):
        same = [part for part, read in zip(parts, PUBLISHED_OFFSETS, strict=True) if read == offset]
        whole.append(combine(torch.stack(same), 0) if same else unread)
    return torch.cat(whole, dim=-1)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
