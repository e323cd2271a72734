"""Bringing the units of every site into one order before their models are joined.

Networks that were trained from different starts can hold the same units in different orders, and a mean over units that
do not correspond destroys them. The assignment is that of PFNM (Yurochkin et al., Bayesian Nonparametric Federated
Learning of Neural Networks, ICML 2019) for a fixed number of units and equal variances, where the gain of putting a
site's unit onto a global one comes down to the inner product of their weights; as in Git Re-Basin (Ainsworth et al.,
arXiv 2209.04836), all tensors that touch a unit count. The largest site sets the order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from MTMed3DCore.federation.symmetry import Place, UnitGroup, permute
from MTMed3DCore.federation.updates import STUDIES, SiteUpdate

PASSES = 5
"""Rounds over all groups after the first, each with what the others have become."""
SLACK = 1e-9
"""Relative gain below which units stay where they are."""


def match(updates: Sequence[SiteUpdate], groups: Sequence[UnitGroup]) -> tuple[list[SiteUpdate], int]:
    """Permute the units of every update into the order of the largest site.

    Returns:
        The updates in the order in which they came, and how many units changed their place.
    """
    order = sorted(updates, key=lambda update: (-update.counts[STUDIES], update.site))
    reference: dict[str, torch.Tensor] = {}
    weight: dict[str, float] = {}
    matched: dict[str, SiteUpdate] = {}
    moved = 0
    for update in order:
        means = {name: update.mean(name) for name in update.tensors}
        tensors, precision = dict(update.tensors), dict(update.precision)
        for group, permutation in align(means, reference, groups):
            moved += int((permutation != np.arange(group.units)).sum())
            means, tensors, precision = (permute(state, group, permutation) for state in (means, tensors, precision))
        matched[update.site] = replace(update, tensors=tensors, precision=precision)
        studies = float(update.counts[STUDIES])
        for name, mean in means.items():
            before = weight.get(name, 0.0)
            weight[name] = before + studies
            reference[name] = (
                mean if not before else reference[name] + (mean - reference[name]) * studies / weight[name]
            )
    return [matched[update.site] for update in updates], moved


def align(
    moving: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], groups: Sequence[UnitGroup]
) -> list[tuple[UnitGroup, np.ndarray]]:
    """Permutations, to be applied one after another, that bring a model's units as near to another's as can be.

    In the first pass a group is compared only by tensors of which the other axes are in order already, from the input
    on; after it, by all its tensors until nothing moves. A group of which either model lacks a tensor is left alone.
    """
    present = [g for g in groups if all(p.tensor in moving and p.tensor in reference for p in g.places)]
    state = dict(moving)
    steps: list[tuple[UnitGroup, np.ndarray]] = []

    def settle(group: UnitGroup, places: Sequence[Place]) -> bool:
        nonlocal state
        found = _assign(_rows(reference, group, places), _rows(state, group, places), group.blocks)
        if found is None:
            return False
        state = permute(state, group, found)
        steps.append((group, found))
        return True

    open_groups = list(present)
    while open_groups:
        group, places = _next(open_groups, reference)
        settle(group, places)
        open_groups.remove(group)
    for _ in range(PASSES):
        moved = [settle(group, group.places) for group in present]  # every one of them, also after one that moved
        if not any(moved):
            break
    return steps


def _next(open_groups: Sequence[UnitGroup], state: Mapping[str, torch.Tensor]) -> tuple[UnitGroup, list[Place]]:
    """The first group that has a tensor with nothing else open in it, with all such tensors."""
    touched = {(place.tensor, place.axis) for group in open_groups for place in group.places}
    for group in open_groups:
        usable = [
            place
            for place in group.places
            if not any(
                (place.tensor, axis) in touched for axis in range(state[place.tensor].ndim) if axis != place.axis
            )
        ]
        if any(state[place.tensor].ndim > 1 for place in usable):
            return group, usable
    return open_groups[0], list(open_groups[0].places)


def _rows(state: Mapping[str, torch.Tensor], group: UnitGroup, places: Sequence[Place]) -> np.ndarray:
    """One row a unit, of every weight that touches it."""
    parts = []
    for place in places:
        tensor = state[place.tensor].double().movedim(place.axis, 0)
        parts.append(tensor[place.start : place.start + group.units * place.width].reshape(group.units, -1))
    rows: np.ndarray = torch.cat(parts, 1).cpu().numpy()
    return rows


def _assign(reference: np.ndarray, moving: np.ndarray, blocks: int) -> np.ndarray | None:
    """Which unit of the moving model belongs to each of the reference; None where the order is right."""
    gain = reference @ moving.T
    if blocks == 1:
        order = _best(gain)
    else:
        size = len(gain) // blocks
        inner = {}
        outer = np.zeros((blocks, blocks))
        for a in range(blocks):
            for b in range(blocks):
                part = gain[a * size : (a + 1) * size, b * size : (b + 1) * size]
                inner[a, b] = _best(part)
                outer[a, b] = part[np.arange(size), inner[a, b]].sum()
        order = np.concatenate([b * size + inner[a, b] for a, b in enumerate(_best(outer))])
    kept, won = float(np.trace(gain)), float(gain[np.arange(len(gain)), order].sum())
    return None if won - kept <= SLACK * max(abs(kept), abs(won)) else order


def _best(gain: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    columns: np.ndarray = linear_sum_assignment(gain, maximize=True)[1]
    return columns
