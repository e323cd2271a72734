"""Where the module lies, and whether the panel can be tested here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "MTMed3DSlicer"


def missing_piece() -> str:
    """Why the panel cannot be tested here; empty where it can."""
    for name, extra in (("slicer", "the slicer-core wheel"), ("PySide6", "PySide6-Essentials")):
        if importlib.util.find_spec(name) is None:
            return f"{extra} (extra 'slicer') is not installed"
    try:
        import PySide6.QtWidgets  # noqa: F401
    except ImportError as error:  # Qt is there but the system lacks a library that it needs
        return f"Qt does not start here: {error}"
    return ""
