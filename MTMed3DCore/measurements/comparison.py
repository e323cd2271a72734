"""What changed between two studies of one patient: volumes and the sum of RANO products."""

from __future__ import annotations

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
        percent (None where the prior value is zero); ``sum_of_products_mm2``: the same; ``new_lesions``: how many more
        lesions; ``reading``: what the diameters alone say by RANO, which also asks for clinical state and steroids;
        ``same_model``.
    """
    before, now = prior.volumes_ml, current.volumes_ml
    products = [sum_of_products(lesion.rano for lesion in each.lesions) for each in (prior, current)]
    return {
        "prior": {
            "study": prior.study_id,
            "created": prior.created.isoformat().replace("+00:00", "Z"),
            "model": f"{prior.model.name} {prior.model.version}",
        },
        "volumes_ml": {name: _change(before[name], now[name]) for name in now},
        "sum_of_products_mm2": _change(*products),
        "new_lesions": max(0, len(current.lesions) - len(prior.lesions)),
        "reading": _reading(*products),
        "same_model": prior.model.sha256 == current.model.sha256,
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
