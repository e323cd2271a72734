"""The Swin encoder's forward pass box by box: MONAI's modules and weights, the same numbers, less work."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import embedding, layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from MTMed3DCore.networks.fast.token_order import Kind, Shape3, TokenOrder, token_order

CACHED_SHAPES = 2
"""Volume shapes whose attention biases a block keeps; about 40 MB each for the encoder of 48 features."""

CHUNK_BYTES = 2**26
"""Of the widest map of a block: attention takes so many boxes at a time, the layers after it so many tokens.
A whole brain in one pass then needs little more memory than its tokens."""
CACHED_BYTES = 2**23
"""Likewise on a CPU, whose cache then holds a map from one layer to the next."""

_Biases = list[torch.Tensor]
_cache: WeakKeyDictionary[nn.Module, OrderedDict[tuple[Any, ...], _Biases]] = WeakKeyDictionary()


def encode(encoder: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What ``encoder(x)`` gives, computed without padding, rolls and masks.

    Args:
        encoder: MONAI's SwinTransformer as `MTMed3DCore.networks.swin.build_encoder` makes it; without dropout or
            stochastic depth.
        x: image (B, C, X, Y, Z).

    Returns:
        Five layer-normed feature maps of strides 2, 4, 8, 16 and 32, contiguous.
    """
    x = encoder.pos_drop(encoder.patch_embed(x)).permute(0, 2, 3, 4, 1).contiguous()
    levels = [_channels_first(x)]
    for stage in (encoder.layers1, encoder.layers2, encoder.layers3, encoder.layers4):
        shape = x.shape
        tokens = x.reshape(shape[0], -1, shape[-1])
        for block in stage[0].blocks:
            order = order_of((shape[1], shape[2], shape[3]), block.window_size, block.shift_size, x.device)
            if block.use_checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(_block, block, tokens, order, use_reentrant=False)
            else:
                tokens = _block(block, tokens, order)
        x = stage[0].downsample(tokens.view(shape))
        levels.append(_channels_first(x))
    return levels


def order_of(shape: Shape3, window: Shape3, shift: Shape3, device: torch.device) -> TokenOrder:
    """`token_order`; nothing in it depends on values, and a compiler is told to take it as it is."""
    return token_order(shape, window, shift, device)


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    """(B, X, Y, Z, C) normalised over the channels and put first."""
    return layer_norm(x, (x.shape[-1],)).permute(0, 4, 1, 2, 3).contiguous()


def _block(block: Any, tokens: torch.Tensor, order: TokenOrder) -> torch.Tensor:
    """One transformer block on tokens (B, L, C)."""
    tokens = tokens + _attended(block, tokens, order).index_select(1, order.inverse)
    width = max(1, _chunk_bytes(tokens) // (block.mlp.linear1.out_features * len(tokens) * tokens.element_size()))
    parts = tokens.split(width, dim=1)
    if torch.is_grad_enabled():
        mixed = [part + block.mlp(block.norm2(part)) for part in parts]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)
    for part in parts:
        part.add_(block.mlp(block.norm2(part)))
    return tokens


def _chunk_bytes(tokens: torch.Tensor) -> int:
    """Of the widest map that is made of tokens at a time."""
    return CACHED_BYTES if tokens.device.type == "cpu" else CHUNK_BYTES


def _attended(block: Any, tokens: torch.Tensor, order: TokenOrder) -> torch.Tensor:
    """What the attention within boxes adds, (B, L, C) box by box; so many boxes at a time as `_chunk_bytes` allows."""
    attention, norm = block.attn, block.norm1
    biases: _Biases = []
    seen, first = [], 0
    for number, kind in enumerate(order.kinds):
        places = len(kind.places)
        most = max(1, _chunk_bytes(tokens) // (3 * places * tokens.shape[-1] * len(tokens) * tokens.element_size()))
        for start in range(0, kind.count, most):
            count = min(most, kind.count - start)
            index = order.index.narrow(0, first + start * places, count * places)
            qkv = attention.qkv(norm(tokens.index_select(1, index)))
            biases = biases or _biases(attention, order, qkv.dtype)
            seen.append(attention.proj(_attend(attention, qkv, kind, biases[number])))
        first += kind.count * places
    return seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)


def _attend(attention: Any, qkv: torch.Tensor, kind: Kind, bias: torch.Tensor) -> torch.Tensor:
    """Attention within boxes of one kind: (B, N, 3 C) box by box to (B, N, C)."""
    heads, places = attention.num_heads, len(kind.places)
    boxes = qkv.reshape(-1, places, 3, heads, qkv.shape[-1] // (3 * heads))
    q, k, v = (boxes[:, :, which].transpose(1, 2) for which in range(3))
    if len(kind.padding):
        _, key, value = _of_padding(attention, boxes)
        k, v = torch.cat([k, key], dim=2), torch.cat([v, value], dim=2)
    mask = bias.expand(len(q), -1, -1, -1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
    return out.transpose(1, 2).reshape(*qkv.shape[:2], -1)


def _of_padding(attention: Any, boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Query, key and value (W, H, 1, D) of a place that holds zeros."""
    count, _, _, heads, width = boxes.shape
    bias = attention.qkv.bias
    if bias is None:
        bias = boxes.new_zeros(3 * heads * width)
    return tuple(bias.to(boxes.dtype).view(3, 1, heads, 1, width).expand(-1, count, -1, -1, -1))


def _biases(attention: Any, order: TokenOrder, dtype: torch.dtype) -> _Biases:
    """What positions add to the attention of each kind of box, (1, H, N, N), one key more where there is padding."""
    table = attention.relative_position_bias_table
    # Compiled code makes its own; an inference tensor does not tell when it changes.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or table.is_inference():
        return _make_biases(attention, order, dtype)
    # The order itself, not its address: that is given to the next one as soon as an order is forgotten elsewhere.
    key = (order, dtype, table.data_ptr(), table._version, table.device)
    kept = _cache.setdefault(attention, OrderedDict())
    if key not in kept:
        kept[key] = _make_biases(attention, order, dtype)
        while len(kept) > CACHED_SHAPES:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


def _make_biases(attention: Any, order: TokenOrder, dtype: torch.dtype) -> _Biases:
    biases = []
    for kind in order.kinds:
        bias = _relative(attention, kind.places, kind.places)
        if len(kind.padding):
            # exp(q k + b1) + exp(q k + b2) + ... = exp(q k + log(exp b1 + exp b2 + ...)): one key for all padding.
            padding = _relative(attention, kind.places, kind.padding).logsumexp(-1, keepdim=True)
            bias = torch.cat([bias, padding], dim=-1)
        biases.append(bias[None].to(dtype).contiguous())
    return biases


def _relative(attention: Any, places: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Position biases (H, N, M) of places of a window towards others."""
    index = attention.relative_position_index.to(places.device)[places[:, None], others[None]]
    # Not table[index]: the threads of its backward pass add in any order, and a resumed run would differ in last bits.
    return embedding(index, attention.relative_position_bias_table).permute(2, 0, 1)
