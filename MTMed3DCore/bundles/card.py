"""The essence of a model card for a report: what the model is for, and what was measured of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = "docs/README.md"
_ROW = re.compile(r"^\|([^|]+)\|([^|]+)\|\s*$")


def card_summary(folder: Path, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Entries by heading.

    Args:
        folder: of a bundle; its card is Markdown in ``docs/README.md``.
        metadata: its ``configs/metadata.json``.

    Returns:
        What the card's two-column tables say, after description and intended use; empty where there is neither.
    """
    result = {}
    for key, heading in (("description", "description"), ("intended_use", "intended use"), ("authors", "authors")):
        if isinstance(metadata.get(key), str):
            result[heading] = str(metadata[key])
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return result
    limits = [part for part in text.split("\n\n") if part.startswith("**For research use only.**")]
    if limits:
        said = " ".join(limits[0].replace("**For research use only.**", "").split())
        result["training and limits"] = said
    for line in text.splitlines():
        if line.startswith("## "):
            result[line[3:].strip().replace("`", "")] = ""
        row = _ROW.match(line)
        if row is None:
            continue
        name, value = (cell.strip().strip("`*") for cell in row.groups())
        if not set(name) <= set("-: ") and (name, value) != ("what", "value"):
            result[name] = value
    return result
