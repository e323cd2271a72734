"""Which tokens of a volume attend to one another.

Swin attention (Liu et al., arXiv 2103.14030) pads a volume to whole windows, rolls it, cuts it into windows, and
forbids the attention between tokens that were no neighbours before the roll. Nothing of that is needed to say who
attends to whom: each axis falls into runs of neighbouring tokens, and a product of three runs is a box whose tokens
attend to one another and to nobody else. A forbidden pair has the weight exp(-100) there and 0 here, in single
precision the same.

The places of the padding hold zeros, so they all have one key and one value; they differ in their positions alone. A
box therefore needs one more key for all its padding together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class Run:
    """Neighbouring places of one axis that lie in one window.

    Args:
        first: the first token.
        tokens: how many there are.
        padding: places of the padding that follow.
        place: of the first token in its window.
    """

    first: int
    tokens: int
    padding: int
    place: int

    @property
    def kind(self) -> tuple[int, int, int]:
        """What decides how its places lie to one another."""
        return self.tokens, self.padding, self.place


@dataclass(frozen=True, eq=False)
class Kind:
    """Boxes of one form.

    Args:
        count: number of boxes.
        places: (N,) where the tokens of a box lie in its window, row by row.
        padding: (P,) where the places of the padding lie.
    """

    count: int
    places: torch.Tensor
    padding: torch.Tensor


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """Tokens of a volume box by box.

    Args:
        index: (L,) the tokens, counted row by row over the volume; boxes of one kind follow one another.
        inverse: (L,) where each token went.
        kinds: forms of the boxes, in that order.
    """

    index: torch.Tensor
    inverse: torch.Tensor
    kinds: tuple[Kind, ...]


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
    boxes: dict[tuple[tuple[int, int, int], ...], list[tuple[Run, ...]]] = {}
    for box in product(*(axis_runs(*axis) for axis in zip(shape, sides, shifts, strict=True))):
        boxes.setdefault(tuple(run.kind for run in box), []).append(box)
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    index = [
        numbers[tuple(slice(run.first, run.first + run.tokens) for run in box)].ravel()
        for alike in boxes.values()
        for box in alike
    ]
    flat = np.concatenate(index)
    inverse = np.empty_like(flat)
    inverse[flat] = np.arange(len(flat))
    kinds = tuple(Kind(len(alike), *_places(alike[0], sides, device)) for alike in boxes.values())
    return TokenOrder(_table(flat, device), _table(inverse, device), kinds)


def axis_runs(length: int, side: int, step: int) -> list[Run]:
    """The runs of an axis of `length` tokens cut into windows of `side` that are shifted by `step`."""
    padded = -(-length // side) * side
    runs = []
    for start in range(step, padded + step, side):
        # What reaches over the end goes on at the beginning, and is no neighbour there.
        end = min(start + side, padded)
        tokens = min(end, length) - start
        if tokens > 0:
            runs.append(Run(start, tokens, end - start - tokens, 0))
        if start + side > padded:
            runs.append(Run(0, start + side - padded, 0, padded - start))
    return runs


def _places(box: tuple[Run, ...], sides: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the tokens and of the padding, in the window."""
    axes = [run.place + np.arange(run.tokens + run.padding) for run in box]
    places = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), sides)
    inside = np.zeros(places.shape, dtype=bool)
    inside[tuple(slice(run.tokens) for run in box)] = True
    return _table(places[inside], device), _table(places[~inside], device)


def _table(values: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """A tensor that training may use as well, also when inference asked for it first."""
    with torch.inference_mode(False):
        return torch.from_numpy(values).to(device)
