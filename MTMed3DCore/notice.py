"""What the reader of a result must know, beside the result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """Something the reader of a result must know.

    Args:
        code: stable name in kebab case.
        text: one sentence for a person.
    """

    code: str
    text: str
