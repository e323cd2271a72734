"""Units that a network could hold in another order without computing anything else.

The hidden units of a feed-forward block, the heads of an attention with their columns of the position bias, and the
channels between two convolutions of a decoder with the norm that lies between them can change places, as long as every
tensor that touches them changes with them. Channels of one group norm may only change places within their group, or
whole groups with each other. What residual connections tie to the encoder's own features keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Place:
    """Where the units of a group lie in a tensor.

    Args:
        tensor: its name in the state dict.
        axis: along which they lie.
        start: where the first begins.
        width: entries a unit.
    """

    tensor: str
    axis: int
    start: int = 0
    width: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """Units that can change places.

    Args:
        name: of what they are.
        units: their number.
        places: every tensor that touches them.
        blocks: of a group norm: units change places within a block, and blocks with each other.
    """

    name: str
    units: int
    places: tuple[Place, ...]
    blocks: int = 1


def permute(
    state: Mapping[str, torch.Tensor], group: UnitGroup, order: Sequence[int] | np.ndarray
) -> dict[str, torch.Tensor]:
    """A state dict with the units of a group in another order.

    Args:
        state: may lack tensors of the group.
        group: of which network.
        order: unit number i becomes what was ``order[i]``.
    """
    changed = dict(state)
    chosen = torch.as_tensor(order, dtype=torch.long)
    for place in group.places:
        if place.tensor not in changed:
            continue
        tensor = changed[place.tensor]
        index = torch.arange(tensor.shape[place.axis])
        units = chosen[:, None] * place.width + torch.arange(place.width)
        index[place.start : place.start + group.units * place.width] = place.start + units.flatten()
        changed[place.tensor] = tensor.index_select(place.axis, index.to(tensor.device))
    return changed


def symmetries(network: nn.Module) -> list[UnitGroup]:
    """Every group of units of a network that is known to be symmetric, from the input to the output."""
    from monai.networks.blocks.dynunet_block import UnetResBlock
    from monai.networks.blocks.mlp import MLPBlock
    from monai.networks.nets.densenet import _DenseLayer
    from monai.networks.nets.resnet import ResNetBlock
    from monai.networks.nets.swin_unetr import WindowAttention

    from MTMed3DCore.networks.detection import DetectionDecoder
    from MTMed3DCore.networks.mtmedformer import ClassificationDecoder
    from MTMed3DCore.networks.resformer import MultiScaleHead, ResFormerDecoder
    from MTMed3DCore.networks.resformer_parts import FeatureEnhancement
    from MTMed3DCore.networks.unetr import SegmentationDecoder

    known: dict[type[nn.Module], Any] = {
        WindowAttention: _heads,
        MLPBlock: _hidden_units,
        SegmentationDecoder: _segmentation_channels,
        UnetResBlock: _inner_channels,
        DetectionDecoder: _detection_channels,
        _DenseLayer: _bottleneck_channels,
        ClassificationDecoder: _hidden_units,
        MultiScaleHead: _hidden_units,
        ResNetBlock: _residual_channels,
        FeatureEnhancement: _branch_channels,
        ResFormerDecoder: _resformer_channels,
    }
    found: list[UnitGroup] = []
    for name, module in network.named_modules():
        for kind, groups in known.items():
            if isinstance(module, kind):
                found += groups(module, f"{name}.")
    return found


def _hidden_units(block: Any, at: str) -> Iterator[UnitGroup]:
    units = block.linear1.out_features
    if block.linear2.in_features == units:  # a gated activation halves them, and is not symmetric in this way
        places = (Place(f"{at}linear1.weight", 0), Place(f"{at}linear1.bias", 0), Place(f"{at}linear2.weight", 1))
        yield UnitGroup(f"{at}hidden", units, places)


def _heads(attention: Any, at: str) -> Iterator[UnitGroup]:
    heads, channels = attention.num_heads, attention.proj.in_features
    width = channels // heads
    names = [f"{at}qkv.weight", *([f"{at}qkv.bias"] if attention.qkv.bias is not None else [])]
    fused = [Place(name, 0, part * channels, width) for name in names for part in range(3)]
    own = (Place(f"{at}proj.weight", 1, 0, width), Place(f"{at}relative_position_bias_table", 1))
    yield UnitGroup(f"{at}heads", heads, (*fused, *own))


def _norm(norm: nn.Module, at: str) -> list[Place]:
    """What a norm over channels keeps by channel."""
    return [Place(f"{at}.{name}", 0) for name, tensor in norm.state_dict().items() if tensor.ndim == 1]


def _blocks(norm: nn.Module) -> int:
    return norm.num_groups if isinstance(norm, nn.GroupNorm) else 1


def _inner_channels(block: Any, at: str) -> Iterator[UnitGroup]:
    places = [Place(f"{at}conv1.conv.weight", 0), *_norm(block.norm1, f"{at}norm1"), Place(f"{at}conv2.conv.weight", 1)]
    yield UnitGroup(f"{at}inner", block.conv1.conv.out_channels, tuple(places), _blocks(block.norm1))


def _outer_places(block: Any, at: str) -> list[Place]:
    """Where the channels lie that a residual block with a convolution on its shortcut gives."""
    places = [Place(f"{at}conv2.conv.weight", 0), *_norm(block.norm2, f"{at}norm2")]
    return [*places, Place(f"{at}conv3.conv.weight", 0), *_norm(block.norm3, f"{at}norm3")]


def _segmentation_channels(decoder: Any, at: str) -> Iterator[UnitGroup]:
    """Channels that pass from one part of the U-shaped decoder to the next."""

    def joined(level: int, start: int) -> list[Place]:
        block = f"{at}decoder{level}.conv_block."
        return [Place(f"{block}conv1.conv.weight", 1, start), Place(f"{block}conv3.conv.weight", 1, start)]

    size = decoder.out.conv.conv.in_channels
    if decoder.encoder1.layer.downsample:
        image = [*_outer_places(decoder.encoder1.layer, f"{at}encoder1.layer."), *joined(1, size)]
        yield UnitGroup(f"{at}encoder1", size, tuple(image), _blocks(decoder.encoder1.layer.norm2))
    for level in (5, 4, 3, 2, 1):
        part = getattr(decoder, f"decoder{level}")
        channels = part.transp_conv.conv.out_channels
        raised = [Place(f"{at}decoder{level}.transp_conv.conv.weight", 1), *joined(level, 0)]
        yield UnitGroup(f"{at}decoder{level}.raised", channels, tuple(raised))
        places = _outer_places(part.conv_block, f"{at}decoder{level}.conv_block.")
        after = Place(f"{at}decoder{level - 1}.transp_conv.conv.weight", 0)
        places.append(after if level > 1 else Place(f"{at}out.conv.conv.weight", 1))
        yield UnitGroup(f"{at}decoder{level}", channels, tuple(places), _blocks(part.conv_block.norm2))


def _convolution(at: str) -> list[Place]:
    """The channels that a convolution with a bias gives."""
    return [Place(f"{at}.weight", 0), Place(f"{at}.bias", 0)]


def _detection_channels(decoder: Any, at: str) -> Iterator[UnitGroup]:
    """Channels of the pyramid and of the two heads."""
    pyramid = decoder.fpn
    levels = len(pyramid.layer_blocks)
    width = pyramid.layer_blocks[0].out_channels
    heads = {f"{at}{name}": getattr(decoder, name) for name in ("classification_head", "regression_head")}
    if hasattr(pyramid, "down_blocks"):  # the published pyramid uses its convolutions twice, and keeps its order
        lateral: list[Place] = []
        for level in range(levels):
            lateral += _convolution(f"{at}fpn.inner_blocks.{level}")
            lateral.append(Place(f"{at}fpn.layer_blocks.{level}.weight", 1))
        yield UnitGroup(f"{at}fpn.lateral", width, tuple(lateral))
        outer = [*_convolution(f"{at}fpn.layer_blocks.0"), Place(f"{at}fpn.down_blocks.0.weight", 1)]
        for level in range(1, levels):
            outer += _convolution(f"{at}fpn.bottom_up_blocks.{level - 1}")
            if level < levels - 1:
                outer.append(Place(f"{at}fpn.down_blocks.{level}.weight", 1))
        outer += [Place(f"{head}.conv.0.weight", 1) for head in heads]
        yield UnitGroup(f"{at}fpn.maps", width, tuple(outer))
        for level in range(1, levels):
            tied = _convolution(f"{at}fpn.layer_blocks.{level}") + _convolution(f"{at}fpn.down_blocks.{level - 1}")
            tied.append(Place(f"{at}fpn.bottom_up_blocks.{level - 1}.weight", 1))
            yield UnitGroup(f"{at}fpn.upwards.{level}", width, tuple(tied))
    for name, head in heads.items():
        last = "cls_logits" if hasattr(head, "cls_logits") else "bbox_reg"
        numbers = [number for number, layer in enumerate(head.conv) if hasattr(layer, "out_channels")]
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            norm = head.conv[number + 1]
            consumer = f"{name}.{last}.weight" if following is None else f"{name}.conv.{following}.weight"
            places = [*_convolution(f"{name}.conv.{number}"), *_norm(norm, f"{name}.conv.{number + 1}")]
            yield UnitGroup(f"{name}.{number}", width, (*places, Place(consumer, 1)), _blocks(norm))


def _bottleneck_channels(layer: Any, at: str) -> Iterator[UnitGroup]:
    parts = layer.layers
    places = [Place(f"{at}layers.conv1.weight", 0), *_norm(parts.norm2, f"{at}layers.norm2")]
    places.append(Place(f"{at}layers.conv2.weight", 1))
    yield UnitGroup(f"{at}bottleneck", parts.conv1.out_channels, tuple(places), _blocks(parts.norm2))


def _residual_channels(block: Any, at: str) -> Iterator[UnitGroup]:
    places = [Place(f"{at}conv1.weight", 0), *_norm(block.bn1, f"{at}bn1"), Place(f"{at}conv2.weight", 1)]
    yield UnitGroup(f"{at}inner", block.conv1.out_channels, tuple(places), _blocks(block.bn1))


def _normed(convolution: Any, at: str) -> list[Place]:
    """The channels that a convolution without a bias gives, and the norm after it."""
    return [Place(f"{at}.conv.weight", 0), *_norm(convolution.adn.N, f"{at}.adn.N")]


def _branch_channels(enhancement: Any, at: str) -> Iterator[UnitGroup]:
    for number, branch in enumerate(enhancement.branches):
        channels = branch.conv.out_channels
        joined = Place(f"{at}join.conv.weight", 1, number * channels)
        places = (*_normed(branch, f"{at}branches.{number}"), joined)
        yield UnitGroup(f"{at}branches.{number}", channels, places, _blocks(branch.adn.N))


def _resformer_channels(decoder: Any, at: str) -> Iterator[UnitGroup]:
    """Channels that pass from one part of the decoder to the next; a sub-pixel enlargement keeps its order."""
    if not all(hasattr(up, "deconv") for up in decoder.up):
        return
    deepest = len(decoder.up)
    for level in range(deepest, -1, -1):
        after = Place(f"{at}up.{level - 1}.deconv.weight", 0) if level else Place(f"{at}out.weight", 1)
        enhance = decoder.enhance[level]
        if hasattr(enhance, "branches"):
            skip = [*_normed(enhance.join, f"{at}enhance.{level}.join")]
            skip += _normed(enhance.shortcut, f"{at}enhance.{level}.shortcut")
            width = enhance.join.conv.out_channels
            skip.append(after if level == deepest else Place(f"{at}join.{level}.conv.weight", 1, width))
            yield UnitGroup(f"{at}enhance.{level}", width, tuple(skip), _blocks(enhance.join.adn.N))
        if level < deepest:
            join = decoder.join[level]
            width = join.conv.out_channels
            raised = [Place(f"{at}up.{level}.deconv.weight", 1), Place(f"{at}up.{level}.deconv.bias", 0)]
            raised.append(Place(f"{at}join.{level}.conv.weight", 1))
            yield UnitGroup(f"{at}up.{level}", width, tuple(raised))
            places = (*_normed(join, f"{at}join.{level}"), after)
            yield UnitGroup(f"{at}join.{level}", width, places, _blocks(join.adn.N))
