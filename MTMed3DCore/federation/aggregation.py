"""One model out of the sites' updates.

FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data (arXiv 1602.05629).

Bayesian: every site's posterior is a Gaussian with diagonal precision (a Laplace approximation), and the global model
is the mean of their product, as in FOLA (Liu et al., arXiv 2102.01936): with the sites' precisions L_j and means m_j,
L = sum L_j and m = sum L_j m_j / L. Sites send L_j and L_j m_j. FedAvg is the case L_j = n_j. Each precision is damped
by a multiple of the tensor's mean precision over all sites, so that damping means the same in every layer.

A tensor takes part with the number of studies that have labels for its task; a site without any drops out of it, and
where all do, it stays as it was. Batch statistics are pooled by their moments. Integer tensors are copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from MTMed3DCore.federation.updates import GlobalState, SiteUpdate, Tensors, is_statistic


def aggregate(
    before: GlobalState,
    updates: Sequence[SiteUpdate],
    tasks: tuple[str, ...],
    *,
    damping: float = math.inf,
    memory: float = 0.0,
) -> GlobalState:
    """The next model.

    Args:
        before: what the sites began with.
        updates: checked; in any order, the sum is made in the order of the sites' names.
        tasks: of the network.
        damping: for updates with a precision: added to it, in units of the tensor's mean precision per study.
        memory: share of the earlier precision that is kept for the next prior; it does not weigh in the mean.

    Returns:
        The model, one round on, with the precision of its parameters where the updates had one.
    """
    updates = sorted(updates, key=lambda update: update.site)
    tensors: dict[str, torch.Tensor] = {}
    precision: dict[str, torch.Tensor] = {}
    for name, old in before.tensors.items():
        sending = [update for update in updates if update.count(name, tasks)]
        if not old.is_floating_point() or not sending:
            tensors[name] = old.clone()
            if name in before.precision:
                precision[name] = before.precision[name].clone()
        elif is_statistic(name):
            tensors[name] = _pooled(name, sending, tasks).to(old.dtype)
        elif name in sending[0].precision:
            mean, total = posterior_product(
                [update.tensors[name] for update in sending],
                [update.precision[name] for update in sending],
                [update.count(name, tasks) for update in sending],
                damping,
            )
            tensors[name] = mean.to(old.dtype)
            kept = memory * before.precision[name].double() if memory and name in before.precision else 0.0
            precision[name] = (total + kept).to(old.dtype)
        else:
            counts = [update.count(name, tasks) for update in sending]
            tensors[name] = weighted_mean([update.tensors[name] for update in sending], counts).to(old.dtype)
    return GlobalState(before.round + 1, tensors, precision)


def weighted_mean(values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Mean in float64 of tensors of one shape."""
    total = float(sum(weights))
    return torch.stack([value.double() * (weight / total) for value, weight in zip(values, weights, strict=True)]).sum(
        0
    )


def posterior_product(
    weighted: Sequence[torch.Tensor], precisions: Sequence[torch.Tensor], counts: Sequence[int], damping: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and precision of a product of Gaussians with diagonal precision, in float64.

    Args:
        weighted: precision times mean, one tensor a site.
        precisions: positive, of the same shapes.
        counts: studies behind each.
        damping: as in `aggregate`; 0 for the plain product, infinity for the mean weighted by `counts`.

    Returns:
        The mean, and the sum of the undamped precisions.
    """
    own = [precision.double() for precision in precisions]
    total = torch.stack(own).sum(0)
    means = [value.double() / precision for value, precision in zip(weighted, own, strict=True)]
    if math.isinf(damping):
        return weighted_mean(means, counts), total
    scale = damping * float(total.mean()) / sum(counts)
    damped = [precision + count * scale for precision, count in zip(own, counts, strict=True)]
    numerator = torch.stack([precision * mean for precision, mean in zip(damped, means, strict=True)]).sum(0)
    return numerator / torch.stack(damped).sum(0), total


def _pooled(name: str, sending: Sequence[SiteUpdate], tasks: tuple[str, ...]) -> torch.Tensor:
    """Mean or variance of all sites' samples together, from each site's mean and variance."""
    counts = [update.count(name, tasks) for update in sending]
    if name.endswith("running_mean"):
        return weighted_mean([update.tensors[name] for update in sending], counts)
    means = [update.tensors[name.removesuffix("running_var") + "running_mean"].double() for update in sending]
    squares = [update.tensors[name].double() + mean**2 for update, mean in zip(sending, means, strict=True)]
    return weighted_mean(squares, counts) - weighted_mean(means, counts) ** 2


def distance(first: Tensors, second: Tensors) -> float:
    """Largest difference between two models, over all floating tensors."""
    gaps = [
        float((first[name].double() - second[name].double()).abs().max())
        for name in first
        if first[name].is_floating_point() and first[name].numel()
    ]
    return max(gaps, default=0.0)
