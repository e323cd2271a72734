"""Where an evaluation keeps what, and files that appear whole or not at all."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from MTMed3DCore.errors import InputRefused
from MTMed3DCore.whole_file import write_whole

SETTINGS = "settings.json"
EVALUATION = "evaluation.json"
CASES_TABLE = "cases.csv"
REPORT = "report.html"
ROWS = "rows"
ANALYSES = "cases"
FIGURES = "figures"


def case_name(case_id: str) -> str:
    """A case's id as the name of a file or folder; an id that cannot be one is shortened and told apart by a hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", case_id)
    if plain == case_id and plain.strip("."):
        return plain
    return f"{plain[:80].strip('.')}-{sha256(case_id.encode()).hexdigest()[:8]}"


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document whole; numbers that are not finite are a mistake of the caller."""
    write_whole(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, what: str, remedy: str) -> Any:
    """Parse a JSON file.

    Raises:
        InputRefused: ``evaluation-unreadable``.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputRefused("evaluation-unreadable", f"{path} is no {what}: {error}.", remedy) from error
