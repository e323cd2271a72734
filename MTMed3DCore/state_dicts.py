"""Whether the tensors of a file fit a network, and if not, which and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from MTMed3DCore.errors import ModelRefused

if TYPE_CHECKING:
    import torch

_SHOWN = 5
"""How many faulty tensors a refusal names before it only counts them."""


def refuse_misfit(
    given: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], *, code: str, subject: str, remedy: str
) -> None:
    """Compare two state dicts by name, shape, kind of number and finiteness.

    Args:
        given: what was read; anything may be in it.
        wanted: the network's own.
        code: of the refusal.
        subject: what does not fit what, for example ``"The checkpoint does not fit the published network"``.
        remedy: of the refusal.

    Raises:
        ModelRefused: a tensor is missing, unknown, misshapen, of another kind or not finite; the text names it.
    """
    faults = [f"{name} is missing" for name in wanted if name not in given]
    faults += [f"{name} is not part of the network" for name in given if name not in wanted]
    faults += [fault for name, own in wanted.items() if name in given and (fault := _fault(name, given[name], own))]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ModelRefused(code, f"{subject}: {'; '.join(faults[:_SHOWN])}{more}.", remedy)


def _fault(name: str, given: Any, own: torch.Tensor) -> str:
    import torch

    if not isinstance(given, torch.Tensor):
        return f"{name} is a {type(given).__name__}, not a tensor"
    if given.shape != own.shape:
        return f"{name} has shape {list(given.shape)}, not {list(own.shape)}"
    if given.is_floating_point() != own.is_floating_point():
        return f"{name} has type {given.dtype}, not {own.dtype}"
    if given.is_floating_point() and not torch.isfinite(given).all():
        return f"{name} holds values that are not finite"
    return ""
