"""Which device an analysis runs on, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from MTMed3DCore.errors import WrongUse
from MTMed3DCore.inference.measured import bf16_pays
from MTMed3DCore.networks.interface import TaskNetwork
from MTMed3DCore.sequences import SEQUENCES

PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(device: str = "auto") -> torch.device:
    """The device of a name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Raises:
        WrongUse: an unknown name, or a device that this machine lacks.
    """
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (kind == "cuda" and number.isdigit())):
        raise WrongUse("device-unknown", f"There is no device {device!r}.", "Use auto, cpu, cuda, cuda:N or mps.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if has_cuda else 0, "mps": int(has_mps)}[kind]
    if int(number or 0) >= count:
        raise WrongUse("device-absent", f"This machine has no usable device {device!r}.", "Use --device auto or cpu.")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device, network: Any = None) -> str:
    """``"fp32"`` or ``"bf16"``; ``"auto"`` is bf16 where it is worth while.

    On CUDA devices that have instructions for it, it is. On a CPU that is measured with the network at its first use
    and remembered; without a network it is fp32.

    Raises:
        WrongUse: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise WrongUse(
            "precision-unknown", f"There is no precision {precision!r}.", f"Use one of {', '.join(PRECISIONS)}."
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if _has_bf16(device) else "fp32"
    measurable = isinstance(network, TaskNetwork) and device.type == "cpu"
    return "bf16" if measurable and bf16_pays(network, len(SEQUENCES), device) else "fp32"


@contextmanager
def full_fp32(device: torch.device, precision: str) -> Iterator[None]:
    """While this lasts, convolutions in fp32 on CUDA are that: cuDNN's round their input to TF32 unless told not to.

    A setting of the process; it is put back in the end. Other precisions and devices are left alone.

    Args:
        device, precision: as in `MTMed3DCore.inference.run_network`.
    """
    if device.type != "cuda" or precision != "fp32":
        yield
        return
    cudnn = torch.backends.cudnn
    conv = getattr(cudnn, "conv", None)  # from torch 2.9 on
    before = getattr(conv, "fp32_precision", None)
    try:
        allowed = cudnn.allow_tf32
    except RuntimeError:  # somebody has used the newer name alone, after which torch refuses to read the older one
        allowed = False
    # Both where both can be read: the compiler reads the older one, and a setting for all of torch outweighs it alone.
    try:
        if allowed:
            cudnn.allow_tf32 = False
        if conv is not None:
            conv.fp32_precision = "ieee"
        yield
    finally:
        if allowed:
            cudnn.allow_tf32 = True
        if conv is not None:
            conv.fp32_precision = before


def _has_bf16(device: torch.device) -> bool:
    """Whether a CUDA device has instructions for bf16, as NVIDIA's have from Ampere on; torch emulates it elsewhere."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
