"""What is measured once on a machine and remembered: the cost of a window, and whether bf16 is worth while.

The figures lie as JSON in the user's cache folder, one entry for each kind of processor, number of threads, version of
torch, network and precision. A folder that cannot be written is no error: then every process measures anew.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch

from MTMed3DCore import __version__
from MTMed3DCore.inference.focus import Sides
from MTMed3DCore.inference.tiling import Triple, WindowCost, fitting_sides, padded_extent, quickest_sides
from MTMed3DCore.memory import available_memory
from MTMed3DCore.whole_file import write_whole

CACHE_VARIABLE = "MTMED3D_CACHE"
SAMPLES: tuple[Triple, Triple] = ((64, 64, 64), (96, 96, 64))
"""Sizes of the windows that are timed, in voxels."""
TURNS = 3
BF16_GAIN = 1.3
"""How many times quicker bf16 must be before exactness is given up for it."""
VALUES_KEPT = 7.5
"""Numbers in memory at the peak for each voxel and feature, beside the weights: the decoder at full resolution.
Measured on a CPU with windows of 96 and 128 voxels in fp32 and bf16: 6.4 to 7.3 with 48 features; with 12, where it is
little, 7.3 to 9.7."""

VALUES_ENCODED = 1.2
"""Likewise of the encoder, in one pass over a whole volume: 0.8 to 1.1 with 48 features; with 12, where it is little,
up to 1.9."""

LARGEST_BYTES = 3 * 2**29
"""That a window may take on a CPU, however much is free."""

_here: dict[str, dict[str, float]] = {}


def cache_folder() -> Path:
    """The user's folder for what can be made again, by the custom of the operating system."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "mtmed3d" / "cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "mtmed3d"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "mtmed3d"


def remembered(key: str, measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """The figures of a key: of this process, of the cache folder, or measured now and kept in both.

    Args:
        key: all that the figures depend on.
        measure: makes them.
    """
    if key in _here:
        return _here[key]
    path = cache_folder() / "measured.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        _here[key] = {str(name): float(value) for name, value in kept[key].items()}
        return _here[key]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        _here[key] = dict(measure())
    try:
        others = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        others = {}
    with suppress(OSError):
        write_whole(path, json.dumps({**(others if isinstance(others, dict) else {}), key: _here[key]}, indent=1))
    return _here[key]


def window_cost(network: Any, channels: int, device: torch.device, precision: str) -> WindowCost:
    """The cost of segmenting a window with a network on this machine, measured at first use.

    Args:
        network: a `TaskNetwork` in eval mode on `device`.
        channels: of its input.
        device, precision: as in `MTMed3DCore.inference.run_network`.
    """

    def measure() -> dict[str, float]:
        short, long = (window_seconds(network, (1, channels, *size), device, precision) for size in SAMPLES)
        small, large = (prod(size) for size in SAMPLES)
        voxel_s = max((long - short) / (large - small), 0.1 * long / large)
        return {"fixed_s": max(0.0, short - small * voxel_s), "voxel_s": voxel_s}

    figures = remembered(_key("segment", network, device, precision), measure)
    return WindowCost(figures["fixed_s"], figures["voxel_s"])


def focus_sides(network: Any, channels: int, window: int, device: torch.device, precision: str) -> Sides:
    """How large windows over a region had best be: the model's own, or larger ones if memory allows and it is quicker.

    The cost of a window is measured only where there is a choice.

    Args:
        network, channels, device, precision: as of `window_cost`.
        window: the model's own side.
    """
    most = memory_at_hand(device) / (VALUES_KEPT * _value_bytes(network, precision))

    def sides(extent: Triple) -> Triple:
        candidates = fitting_sides(extent, window, most)
        if len(candidates) == 1:
            return candidates[0]
        return quickest_sides(extent, candidates, window_cost(network, channels, device, precision))

    return sides


def fits_whole(network: Any, extent: Triple, device: torch.device, precision: str) -> bool:
    """Whether memory suffices to encode a volume in one pass."""
    voxels = prod(padded_extent(extent))
    return voxels * VALUES_ENCODED * _value_bytes(network, precision) <= memory_at_hand(device)


def _value_bytes(network: Any, precision: str) -> int:
    """Of one number for each feature."""
    return (4 if precision == "fp32" else 2) * int(network.config.get("feature_size", 48))


def bf16_pays(network: Any, channels: int, device: torch.device) -> bool:
    """Whether a window in bf16 is so much quicker here that its rounding is worth it; measured at first use."""

    def measure() -> dict[str, float]:
        # By the processor's own time where it computes: other programs slow both sides, but never alike.
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        shape = (1, channels, *SAMPLES[0])
        exact, coarse = (
            window_seconds(network, shape, device, each, clock, all_passes=True) for each in ("fp32", "bf16")
        )
        return {"gain": exact / coarse}

    return remembered(_key("bf16", network, device, "both"), measure)["gain"] >= BF16_GAIN


def memory_at_hand(device: torch.device) -> float:
    """Bytes that a window may take: half of what is free, so that the rest of the analysis has room as well."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) / 2
    return min(available_memory() / 2, float(LARGEST_BYTES))


def window_seconds(
    network: Any,
    shape: tuple[int, ...],
    device: torch.device,
    precision: str,
    clock: Callable[[], float] = time.perf_counter,
    *,
    all_passes: bool = False,
) -> float:
    """Least seconds of segmenting one window (B, C, X, Y, Z), after one turn of warm-up.

    Its levels are there already, as a quick run has them from its pass over the whole brain.

    Args:
        clock: tells the time.
        all_passes: encoding and detecting count as well.
    """
    x = torch.zeros(shape, device=device).normal_(generator=torch.Generator(device).manual_seed(0))
    seconds = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = network.encode(x)
        for _ in range(TURNS + 1):
            _wait_for(device)
            started = clock()
            if all_passes:
                features = network.encode(x)
                network.detect(features)
            network.segment(x, features)
            _wait_for(device)
            seconds.append(clock() - started)
    return min(seconds[1:])


def _wait_for(device: torch.device) -> None:
    """Until a GPU has computed what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _key(figure: str, network: Any, device: torch.device, precision: str) -> str:
    """All that a figure depends on."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    config = json.dumps(network.config, sort_keys=True)
    family = getattr(network, "family", "")
    threads = f"{torch.get_num_threads()} threads"
    parts = (figure, processor, threads, torch.__version__, __version__, family, config, precision)
    return " | ".join(parts)


def _processor() -> str:
    """Kind of processor: its instructions decide."""
    return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
