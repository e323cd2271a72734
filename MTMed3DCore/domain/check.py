"""One measured answer to the question whether a study is of the kind that models of this package know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from MTMed3DCore.notice import Notice

BEGINNING = "This may not be a pre-operative glioma MR study of an adult"


@dataclass(frozen=True)
class DomainCheck:
    """A quantity, where it should lie, and what it means where it does not.

    Args:
        code: stable name in kebab case, also of the notice.
        quantity: what was measured, for a person.
        value: the measurement.
        low: least value that is expected; None where there is none.
        high: greatest value that is expected; None where there is none.
        unit: of the three numbers; empty for shares, ratios and correlations.
        meaning: what a value outside suggests and what to do, as the end of a sentence.
    """

    code: str
    quantity: str
    value: float
    low: float | None
    high: float | None
    unit: str
    meaning: str

    @property
    def within(self) -> bool:
        """Whether the value lies where it should."""
        value = float(self.value)  # a NumPy number would give a NumPy truth, which is no JSON
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def expected(self) -> str:
        """The range in words: ``900 to 2300 ml``, ``at most 12 ml``."""
        unit = f" {self.unit}" if self.unit else ""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}{unit}"
        return f"at least {self.low:g}{unit}" if self.low is not None else f"at most {self.high:g}{unit}"

    @property
    def notice(self) -> Notice:
        """The warning that a value outside the range deserves."""
        unit = f" {self.unit}" if self.unit else ""
        measured = f"{self.quantity} is {self.value:.3g}{unit}, expected {self.expected}"
        return Notice(self.code, f"{BEGINNING}: {measured}. {self.meaning}")

    def document(self) -> dict[str, Any]:
        """As the JSON object that ``findings.json`` holds."""
        return {
            "code": self.code,
            "quantity": self.quantity,
            "value": float(self.value),
            "low": self.low,
            "high": self.high,
            "unit": self.unit,
            "meaning": self.meaning,
            "within": self.within,
        }


def document_check(document: Mapping[str, Any]) -> DomainCheck:
    """The way back from `DomainCheck.document`."""
    return DomainCheck(**{key: value for key, value in document.items() if key != "within"})


def notices(checks: Iterable[DomainCheck]) -> tuple[Notice, ...]:
    """Warnings of the checks that lie outside their ranges."""
    return tuple(check.notice for check in checks if not check.within)
