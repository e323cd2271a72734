"""MTMed3D: brain tumour detection, segmentation and grading on four MR sequences. For research use only.

Nothing heavy is imported until it is asked for: ``import MTMed3DCore`` loads neither torch nor numpy (PEP 562).

    import MTMed3DCore as mtmed3d

    study = mtmed3d.Study.read("case/")
    findings = mtmed3d.analyze(study, model="starter")
    findings.write("out/")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MTMed3DCore import bundles, networks
    from MTMed3DCore.findings import Findings
    from MTMed3DCore.inference import analyze
    from MTMed3DCore.study import Study

__version__ = "0.1.0"
__all__ = ["Findings", "Study", "__version__", "analyze", "bundles", "networks"]

_HOMES = {
    "Findings": "MTMed3DCore.findings",
    "Study": "MTMed3DCore.study",
    "analyze": "MTMed3DCore.inference",
    "bundles": None,
    "networks": None,
}
"""The module that each lazy attribute comes from; None for an attribute that is itself a module."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    value = import_module(f"{__name__}.{name}") if home is None else getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
