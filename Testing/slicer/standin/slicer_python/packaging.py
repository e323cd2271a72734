"""Stands in for ``slicer.packaging``: installs nothing and remembers what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

asked_for: list[dict[str, Any]] = []


def load_requirements(path: str | Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def pip_check(_requirement: Any) -> bool:
    return True


def pip_ensure(
    requirements: list[str],
    constraints: str | Path | None = None,
    skip_packages: list[str] | None = None,
    prompt_install: bool = True,
    prompt_restart: bool = True,
    requester: str | None = None,
    skip_in_testing: bool = True,
    show_progress: bool = True,
) -> list[str] | None:
    asked_for.append({"requirements": requirements, "skip_packages": skip_packages, "requester": requester})
    return None
