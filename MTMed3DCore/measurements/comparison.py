"""What changed between two studies of one patient: volumes and the sum of RANO products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from MTMed3DCore.measurements.rano import sum_of_products

if TYPE_CHECKING:
    from MTMed3DCore.findings import Findings

PROGRESSION_PERCENT = 25.0
"""Growth of the sum of products from which the measurement alone meets RANO's criterion of progression."""
RESPONSE_PERCENT = -50.0
"""Shrinkage of the sum of products from which the measurement alone meets RANO's criterion of partial response."""


def compare(current: Findings, prior: Findings) -> dict[str, Any]:
    """Changes since a prior study.

    Args:
        current: these findings.
        prior: those of the earlier study.

    Returns:
        ``prior``: id, date of analysis, model; ``volumes_ml``: by region, prior and current value and the change in
        percent (None where the prior value is zero); ``sum_of_products_mm2``: the same; ``lesions``: how many in
        either; ``new_lesions``: how many more; ``reading``: what the diameters alone say by RANO, which also asks for
        clinical state and steroids; ``same_model``.
    """
    identity = {
        "study": prior.study_id,
        "created": prior.created.isoformat().replace("+00:00", "Z"),
        "model": f"{prior.model.name} {prior.model.version}",
    }
    products = sum_of_products(lesion.rano for lesion in prior.lesions)
    same_model = prior.model.sha256 == current.model.sha256
    return _compared(identity, prior.volumes_ml, products, len(prior.lesions), same_model, current)


def compare_again(comparison: Mapping[str, Any], current: Findings) -> dict[str, Any] | None:
    """An earlier comparison with what a reader corrected in the current study.

    Args:
        comparison: of `compare`.
        current: the corrected findings.

    Returns:
        The same with current values measured anew, or None where the comparison does not say how many lesions the
        prior study had.
    """
    if "lesions" not in comparison:
        return None
    before = {name: float(change["prior"]) for name, change in comparison["volumes_ml"].items()}
    products = float(comparison["sum_of_products_mm2"]["prior"])
    count = int(comparison["lesions"]["prior"])
    return _compared(comparison["prior"], before, products, count, bool(comparison["same_model"]), current)


def _compared(
    identity: Mapping[str, Any],
    before: Mapping[str, float],
    products_before: float,
    lesions_before: int,
    same_model: bool,
    current: Findings,
) -> dict[str, Any]:
    now = current.volumes_ml
    products = sum_of_products(lesion.rano for lesion in current.lesions)
    return {
        "prior": dict(identity),
        "volumes_ml": {name: _change(before[name], now[name]) for name in now},
        "sum_of_products_mm2": _change(products_before, products),
        "lesions": {"prior": lesions_before, "current": len(current.lesions)},
        "new_lesions": max(0, len(current.lesions) - lesions_before),
        "reading": _reading(products_before, products),
        "same_model": same_model,
    }


def _change(before: float, now: float) -> dict[str, float | None]:
    return {"prior": before, "current": now, "percent": 100.0 * (now - before) / before if before > 0 else None}


def _reading(before: float, now: float) -> str:
    if before == 0 and now == 0:
        return "no measurable enhancing lesion in either study"
    if before == 0:
        return "measurable enhancing lesion, none before"
    percent = 100.0 * (now - before) / before
    if now == 0:
        return "no measurable enhancing lesion any more"
    if percent >= PROGRESSION_PERCENT:
        return f"sum of products grew by {PROGRESSION_PERCENT:.0f} % or more"
    if percent <= RESPONSE_PERCENT:
        return f"sum of products shrank by {-RESPONSE_PERCENT:.0f} % or more"
    return f"sum of products changed by less than {PROGRESSION_PERCENT:.0f} % up or {-RESPONSE_PERCENT:.0f} % down"
