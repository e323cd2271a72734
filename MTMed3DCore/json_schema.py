"""Documents checked against the JSON schemas of this package (draft 2020-12)."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def load_schema(name: str) -> dict[str, Any]:
    """A schema by the name of its file without ``.schema.json``, for example ``findings-1``."""
    text = (files("MTMed3DCore") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def first_fault(document: Any, name: str) -> str | None:
    """Where and why a document does not follow a schema, as ``place: reason``, outermost fault first; else None."""
    from jsonschema import Draft202012Validator

    faults = sorted(Draft202012Validator(load_schema(name)).iter_errors(document), key=lambda e: len(e.absolute_path))
    if not faults:
        return None
    place = "/".join(map(str, faults[0].absolute_path)) or "the whole object"
    return f"{place}: {faults[0].message[:300]}"
