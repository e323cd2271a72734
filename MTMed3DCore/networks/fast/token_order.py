"""Where each token of a volume sits in the attention windows.

Swin attention (Liu et al., arXiv 2103.14030) pads a volume to whole windows, rolls it, cuts it into windows and undoes
all that afterwards: six passes over the data. One table of indices does the same in a single gather each way. In a
shifted block only the windows at the far faces join tokens that were no neighbours before the roll; all windows fall
into at most eight kinds, one for each combination of faces, and each kind needs one mask rather than one for every
window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

FORBIDDEN = -100.0
"""Added to the attention between tokens that are no neighbours, as Swin does."""

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class TokenOrder:
    """Tokens of a volume in the order of its attention windows.

    Args:
        index: (W * N,) for each place in each window the token, counted row by row over the volume; places that lie in
            the padding hold the number of tokens, one past the last.
        inverse: (tokens,) where each token went.
        per_window: places in a window, N.
        kinds: number of windows and mask (N, N) of each kind, None where every token may see every other; windows of
            one kind follow one another in `index`.
        padded: whether `index` points into the padding anywhere.
    """

    index: torch.Tensor
    inverse: torch.Tensor
    per_window: int
    kinds: tuple[tuple[int, torch.Tensor | None], ...]
    padded: bool

    @property
    def windows(self) -> int:
        """Number of windows, W."""
        return sum(count for count, _ in self.kinds)


@lru_cache(maxsize=32)
def token_order(shape: Shape3, window: Shape3, shift: Shape3, device: torch.device) -> TokenOrder:
    """The order for a volume of tokens.

    Args:
        shape: of the volume in tokens.
        window: sides of an attention window; an axis no longer than its side is one window and not shifted.
        shift: of the windows, zeros for a block that is not shifted.
        device: of the tables.
    """
    sides = tuple(min(length, side) for length, side in zip(shape, window, strict=True))
    shifts = tuple(0 if length <= side else step for length, side, step in zip(shape, window, shift, strict=True))
    padded = tuple(-(-length // side) * side for length, side in zip(shape, sides, strict=True))
    tokens = int(np.prod(shape))
    numbers = np.full(padded, tokens, dtype=np.int64)
    numbers[tuple(slice(length) for length in shape)] = np.arange(tokens).reshape(shape)
    numbers = np.roll(numbers, [-step for step in shifts], axis=(0, 1, 2))
    index = _cut(numbers, sides)
    kinds: list[tuple[int, torch.Tensor | None]] = [(len(index), None)]
    if any(shifts):
        patches = _cut(_neighbourhoods(padded, sides, shifts), sides)
        patches -= patches.min(axis=1, keepdims=True)
        patterns, kind, counts = np.unique(patches, axis=0, return_inverse=True, return_counts=True)
        index = index[np.argsort(kind.ravel(), kind="stable")]
        kinds = [(int(count), _mask(pattern, device)) for pattern, count in zip(patterns, counts, strict=True)]
    flat = index.ravel()
    inside = np.flatnonzero(flat < tokens)
    inverse = np.empty(tokens, dtype=np.int64)
    inverse[flat[inside]] = inside
    tables = _table(flat, device), _table(inverse, device)
    return TokenOrder(*tables, index.shape[1], tuple(kinds), len(inside) < len(flat))


def _cut(volume: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """A volume to its windows (W, N), both row by row."""
    split = [part for length, side in zip(volume.shape, sides, strict=True) for part in (length // side, side)]
    windows = volume.reshape(split).transpose(0, 2, 4, 1, 3, 5)
    return windows.reshape(-1, int(np.prod(sides)))


def _neighbourhoods(padded: tuple[int, ...], sides: tuple[int, ...], shifts: tuple[int, ...]) -> np.ndarray:
    """A number for each place of the rolled volume; places of one window are neighbours where the numbers agree."""
    number = np.zeros(padded, dtype=np.int64)
    for axis, (length, side, step) in enumerate(zip(padded, sides, shifts, strict=True)):
        along = np.zeros(length, dtype=np.int64)
        if step:
            along[length - side : length - step] = 1
            along[length - step :] = 2
        number = 3 * number + along.reshape([-1 if each == axis else 1 for each in range(3)])
    return number


def _mask(pattern: np.ndarray, device: torch.device) -> torch.Tensor | None:
    """What to add to the attention (N, N) between the places of a window."""
    apart = pattern[:, None] != pattern[None, :]
    if not apart.any():
        return None
    return _table(np.where(apart, np.float32(FORBIDDEN), np.float32(0.0)), device)


def _table(values: np.ndarray, device: torch.device) -> torch.Tensor:
    """A tensor that training may use as well, also when inference asked for it first."""
    with torch.inference_mode(False):
        return torch.from_numpy(values).to(device)
