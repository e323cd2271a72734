"""The Python packages that the analysis needs, installed on the first Analyze and only with consent.

3D Slicer's own Python gets them: torch through the PyTorch extension, which picks the build for the computer's GPU,
and the others through ``slicer.packaging``. Without a network connection, install them beforehand; see the page on
troubleshooting. A Python that has everything already can be named in the environment variable `OTHER_PYTHON`, and then
nothing is installed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

OTHER_PYTHON = "MTMED3D_WORKER_PYTHON"
TORCH = ">=2.8"
"""Versions of torch that the network runs with."""
NEEDED = ("torch", "monai", "einops", "scipy", "SimpleITK", "nibabel", "safetensors", "jsonschema", "matplotlib")
"""Top-level modules without which the worker does not start."""
NEEDED_FOR_DICOM = ("pydicom", "highdicom")
"""Top-level modules with which this process writes DICOM objects."""


class PackagesMissing(RuntimeError):
    """The packages are not there and were not installed; the text says what to do."""


def core_folder(module_file: str | Path) -> Path:
    """The folder that holds MTMed3DCore: the module's own once installed, its parent in a checkout.

    Raises:
        FileNotFoundError: neither holds it.
    """
    beside = Path(module_file).resolve().parent
    for folder in (beside, beside.parent):
        if (folder / "MTMed3DCore" / "__init__.py").is_file():
            return folder
    raise FileNotFoundError(
        f"MTMed3DCore lies neither in {beside} nor in {beside.parent}; install the extension again."
    )


def make_core_importable(folder: Path) -> None:
    """Let ``import MTMed3DCore`` find the package in `folder`."""
    if importlib.util.find_spec("MTMed3DCore") is None:
        sys.path.append(str(folder))


def worker_environment(folder: Path) -> dict[str, str | None]:
    """Variables that let the worker process import MTMed3DCore from `folder`."""
    if os.environ.get(OTHER_PYTHON):
        return {"PYTHONPATH": str(folder), "PYTHONHOME": None}  # Slicer's own would mislead another interpreter
    own = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(part for part in (str(folder), own) if part)}


def missing() -> list[str]:
    """Modules that the worker would not find; empty where another Python runs it."""
    if os.environ.get(OTHER_PYTHON):
        return []
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def ensure(requirements: str | Path) -> None:
    """Install what is missing, after asking.

    Args:
        requirements: the module's requirements.txt; torch is not in it.

    Raises:
        PackagesMissing: the PyTorch extension is absent, or the user or pip refused.
    """
    if not missing():
        return
    if importlib.util.find_spec("torch") is None:
        _ensure_torch()
    _install(requirements)
    left = missing()
    if left:
        raise PackagesMissing(f"These Python packages are missing: {', '.join(left)}. Click Analyze to install them.")


def ensure_dicom(requirements: str | Path) -> None:
    """Install what writing DICOM needs, after asking; into this process' Python, whichever runs the worker.

    Args:
        requirements: the module's requirements-dicom.txt.

    Raises:
        PackagesMissing: the user or pip refused.
    """
    if all(importlib.util.find_spec(name) is not None for name in NEEDED_FOR_DICOM):
        return
    _install(requirements)
    left = [name for name in NEEDED_FOR_DICOM if importlib.util.find_spec(name) is None]
    if left:
        raise PackagesMissing(f"These Python packages are missing: {', '.join(left)}. Click Export to install them.")


def _install(requirements: str | Path) -> None:
    from slicer import packaging

    try:
        packaging.pip_ensure(packaging.load_requirements(str(requirements)), requester="MTMed3D")
    except Exception as error:  # pip's failures and a declined dialog arrive as exceptions of several kinds
        raise PackagesMissing(f"The Python packages were not installed: {error}.") from error
    importlib.invalidate_caches()


def _ensure_torch() -> None:
    try:
        import PyTorchUtils
    except ImportError as error:
        text = "The PyTorch extension is missing. Install it in the Extensions Manager, then restart 3D Slicer."
        raise PackagesMissing(text) from error
    installed = PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH)
    if installed is None:
        raise PackagesMissing("PyTorch was not installed. Click Analyze again to install it.")
