"""What leaves a site is bounded and blurred if it is asked for, and case names never leave it.

The unit of protection is a site's whole update of a round: clipped to an L2 norm C, with Gaussian noise of standard
deviation z C. Replacing everything that a site holds changes its update by 2 C at most, so a round is a Gaussian
mechanism of rate 2 / z^2 (Renyi divergence of order a: 2 a / z^2), and T rounds add up to rho = 2 T / z^2. By Mironov,
Renyi Differential Privacy (arXiv 1702.07476, proposition 3), with the best order, that is (epsilon, delta) with
epsilon = rho + 2 sqrt(rho log(1 / delta)). Counts of studies are sent as they are and are not covered.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import torch


def blur(
    after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor], clip: float, noise: float
) -> dict[str, torch.Tensor]:
    """Weights whose change is clipped and blurred.

    Args:
        after, before: floating tensors of the same names.
        clip: largest L2 norm of the change over all tensors together; 0 for none.
        noise: as a multiple of `clip`. It comes from a generator that the machine's entropy seeds, never from a run's
            seed, which the server knows.
    """
    if not clip:
        return dict(after)
    change = {name: after[name].double().cpu() - before[name].double().cpu() for name in after}
    norm = math.sqrt(sum(float((part**2).sum()) for part in change.values()))
    factor = min(1.0, clip / norm) if norm else 1.0
    generator = torch.Generator().manual_seed(secrets.randbits(63))
    blurred = {}
    for name, part in change.items():
        part = part * factor
        if noise:
            part = part + noise * clip * torch.randn(part.shape, generator=generator, dtype=torch.float64)
        blurred[name] = (before[name].double().cpu() + part).to(after[name].dtype)
    return blurred


def epsilon(noise: float, rounds: int, delta: float) -> float:
    """The epsilon of all rounds together for a site; infinity without noise."""
    if not noise:
        return math.inf
    rho = 2.0 * rounds / noise**2
    return rho + 2.0 * math.sqrt(rho * math.log(1.0 / delta))


def salt_of(folder: Path) -> bytes:
    """The secret of a site for `alias`, made when it is first asked for and readable by its owner alone."""
    path = folder / ".salt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def alias(case: str, salt: bytes) -> str:
    """What a case is called outside its site: without the site's secret nobody finds the name from it."""
    return sha256(salt + case.encode()).hexdigest()[:12]
