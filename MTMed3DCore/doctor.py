"""What this machine has and can do, as ten checks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from MTMed3DCore import __version__
from MTMed3DCore.errors import ModelRefused, OutOfResources

GIB = 1 << 30
LEAST_MEMORY_GIB = 4
"""What the analysis of a 240 x 240 x 155 study with the starter needs on a CPU, with room for the system."""
LEAST_DISK_GIB = 1
_LACKING = OutOfResources.exit_code


@dataclass(frozen=True)
class Check:
    """One line of the answer.

    Args:
        name: what was looked at.
        text: what was found.
        exit_code: 0 where it suffices for an analysis, otherwise the exit code that an analysis would end with.
    """

    name: str
    text: str
    exit_code: int = 0


def examine() -> list[Check]:
    """The ten checks, in the order in which one thing needs another."""
    return [
        Check("mtmed3d", f"{__version__}; for research use only"),
        Check("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"),
        _package("torch"),
        _package("monai"),
        _devices(),
        _bf16(),
        _memory(),
        Check("cores", f"{_cores()} usable"),
        _starter(),
        _disk(),
    ]


def memory_bytes() -> int | None:
    """Physical memory of the machine; None where the system does not say."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _windows_memory() -> int | None:
    import ctypes

    kilobytes = ctypes.c_ulonglong()
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009  the attribute exists on Windows only
    return kilobytes.value * 1024 if kernel.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes)) else None


def _cores() -> int:
    # A container may be allowed fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _package(name: str) -> Check:
    try:
        return Check(name, version(name))
    except PackageNotFoundError:
        return Check(name, f"not installed; install it with: python -m pip install {name}", _LACKING)


def _devices() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("devices", f"unknown, because torch cannot be imported: {error}", _LACKING)
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} {properties.name} with {properties.total_memory / GIB:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps")
    return Check("devices", ", ".join(found))


def _bf16() -> Check:
    try:
        import torch
    except ImportError:
        return Check("bf16", "unknown without torch")
    if torch.cuda.is_available():
        return Check(
            "bf16", "yes, on CUDA" if torch.cuda.is_bf16_supported(including_emulation=False) else "no, on CUDA"
        )
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not capabilities:
        return Check("bf16", "unknown on this CPU; fp32 is used")
    fast = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return Check("bf16", "yes, in this CPU" if fast else "not in this CPU; fp32 is used")


def _memory() -> Check:
    total = memory_bytes()
    if total is None:
        return Check("memory", "unknown")
    text = f"{total / GIB:.1f} GiB"
    if total < LEAST_MEMORY_GIB * GIB:
        return Check("memory", f"{text}; an analysis needs {LEAST_MEMORY_GIB} GiB", _LACKING)
    return Check("memory", text)


def _starter() -> Check:
    try:
        from MTMed3DCore.bundles import STARTER, find_bundle, verify

        bundle = find_bundle(STARTER)
        verify(bundle)
    except ModelRefused as refused:
        return Check("starter", refused.text, refused.exit_code)
    except ImportError as error:
        return Check("starter", f"not examined: {error}", _LACKING)
    return Check("starter", f"{bundle.version}, verified, in {bundle.folder}")


def _disk() -> Check:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free / GIB
    text = f"{free:.1f} GiB free in {folder}, {shutil.disk_usage('.').free / GIB:.1f} GiB in the working folder"
    return Check("disk", text, _LACKING if free < LEAST_DISK_GIB else 0)
