"""``python -m MTMed3DCore`` is ``mtmed3d``."""

from __future__ import annotations

from MTMed3DCore.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
