"""Every message on the page of troubleshooting is one that the code can say; runs without Slicer."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "slicer-troubleshooting.md"
ANY = "\N{HORIZONTAL ELLIPSIS}"


def messages() -> list[str]:
    """The first column of the page's table."""
    rows = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in rows if row]


@cache
def texts() -> tuple[str, ...]:
    """Every string of the extension and the core, with `ANY` for what is filled in."""
    found = set()
    for folder in (ROOT / "MTMed3DSlicer", ROOT / "MTMed3DCore"):
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else ANY for p in node.values)
                    found.add("".join(str(part) for part in parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return tuple(found)


def said(fragment: str) -> bool:
    """Whether one string of the code holds a part of a message; a full stop may be added elsewhere."""
    return any(fragment.rstrip(". ").lstrip(". ") in text for text in texts())


def test_the_page_has_messages() -> None:
    assert len(messages()) >= 25


@pytest.mark.parametrize("message", messages())
def test_the_code_says_it(message: str) -> None:
    fragments = [part for part in message.split(ANY) if part.strip(" .()\N{LEFT DOUBLE QUOTATION MARK}")]
    assert fragments, message
    assert [fragment for fragment in fragments if not said(fragment)] == []
