"""The Swin encoder's forward pass on gathered windows: MONAI's modules and weights, the same numbers, less traffic."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from MTMed3DCore.networks.fast.token_order import TokenOrder, token_order

CACHED_SHAPES = 2
"""Volume shapes whose attention biases a block keeps; about 80 MB each at 48 features and 96 voxels."""

_Biases = list[torch.Tensor]
_cache: WeakKeyDictionary[nn.Module, OrderedDict[tuple[Any, ...], _Biases]] = WeakKeyDictionary()


def encode(encoder: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What ``encoder(x)`` gives, computed on gathered windows.

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
            order = token_order(tuple(shape[1:4]), block.window_size, block.shift_size, x.device)
            if block.use_checkpoint and torch.is_grad_enabled():
                tokens = checkpoint(_block, block, tokens, order, use_reentrant=False)
            else:
                tokens = _block(block, tokens, order)
        x = stage[0].downsample(tokens.view(shape))
        levels.append(_channels_first(x))
    return levels


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    """(B, X, Y, Z, C) normalised over the channels and put first."""
    return layer_norm(x, (x.shape[-1],)).permute(0, 4, 1, 2, 3).contiguous()


def _block(block: Any, tokens: torch.Tensor, order: TokenOrder) -> torch.Tensor:
    """One transformer block on tokens (B, L, C)."""
    attention = block.attn
    batch, _, channels = tokens.shape
    normed = block.norm1(tokens)
    if order.padded:
        normed = torch.cat([normed, normed.new_zeros(batch, 1, channels)], dim=1)
    windows = normed.index_select(1, order.index)
    heads = attention.num_heads
    qkv = attention.qkv(windows).view(batch, order.windows, order.per_window, 3, heads, channels // heads)
    seen = _attend(qkv, _biases(attention, order, qkv.dtype), [count for count, _ in order.kinds], attention.scale)
    tokens = tokens + attention.proj(seen.reshape(batch, -1, channels).index_select(1, order.inverse))
    mixed: torch.Tensor = tokens + block.mlp(block.norm2(tokens))
    return mixed


def _attend(qkv: torch.Tensor, biases: _Biases, counts: list[int], scale: float) -> torch.Tensor:
    """Attention within windows: (B, W, N, 3, H, D) to (B, W, N, H, D)."""
    parts = []
    for part, bias in zip(qkv.split(counts, dim=1), biases, strict=True):
        q, k, v = part.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
        mask = bias.expand(len(q), -1, -1, -1)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        parts.append(out.transpose(1, 2).unflatten(0, (len(qkv), -1)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _biases(attention: Any, order: TokenOrder, dtype: torch.dtype) -> _Biases:
    """What is added to the attention of each kind of window, (1, H, N, N): relative positions and mask."""
    table = attention.relative_position_bias_table
    if torch.is_grad_enabled() or table.is_inference():  # an inference tensor does not tell when it changes
        return _make_biases(attention, order, dtype)
    key = (order.index.data_ptr(), dtype, table.data_ptr(), table._version, table.device)
    kept = _cache.setdefault(attention, OrderedDict())
    if key not in kept:
        kept[key] = _make_biases(attention, order, dtype)
        while len(kept) > CACHED_SHAPES:
            kept.popitem(last=False)
    return kept[key]


def _make_biases(attention: Any, order: TokenOrder, dtype: torch.dtype) -> _Biases:
    places = order.per_window
    index = attention.relative_position_index[:places, :places].reshape(-1)
    relative = attention.relative_position_bias_table[index].view(places, places, -1).permute(2, 0, 1)[None]
    relative = relative.contiguous()
    return [(relative if mask is None else relative + mask).to(dtype) for _, mask in order.kinds]
