"""What one multi-task network costs against three single-task ones: the paper's comparison (arXiv 2511.12373), by rule.

Counted without running anything, so the same on every machine: parameters, floating-point operations (two for each
multiply and add, by PyTorch's own counter), and the activations that a training step keeps for its backward pass.
Measured, each variant in a process of its own: the time of a pass after warm-up and with the device synchronised, as
a median, and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import MTMed3DCore
from MTMed3DCore.errors import OutOfResources
from MTMed3DCore.networks import TASKS, TaskNetwork, build_network
from MTMed3DCore.networks.multitask import SEQUENCE_COUNT
from MTMed3DCore.progress import Progress, silent
from MTMed3DCore.training.recompute import recompute_activations

MULTI = "multi-task"
VARIANTS: dict[str, tuple[str, ...]] = {MULTI: TASKS, **{task: (task,) for task in TASKS}}
"""The network of all tasks, and one for each; grading reads the segmentation, so its own brings that decoder too."""
ANCHORS = 5
MIB = 2**20


@dataclass(frozen=True)
class Counted:
    """What a network needs, whatever it runs on.

    Args:
        parameters: numbers that are learned.
        flops: floating-point operations of one forward pass, a multiply and an add being two.
        activation_bytes: kept for the backward pass of one patch in single precision.
        checkpointed_bytes: the same with gradient checkpointing.
    """

    parameters: int
    flops: int
    activation_bytes: int
    checkpointed_bytes: int


@dataclass(frozen=True)
class Measured:
    """What a pass took on a device.

    Args:
        seconds: wall clock of each pass after the warm-up.
        processor_seconds: time on the processor of each pass; shows how much other work disturbed a CPU.
        base_bytes, peak_bytes: memory before the network was built, and the highest: of the GPU, or of the process.
    """

    seconds: list[float]
    processor_seconds: list[float]
    base_bytes: int
    peak_bytes: int


def count(preset: str, feature_size: int, tasks: Sequence[str], patch: int) -> Counted:
    """Count a network on tensors without content.

    Args:
        preset, feature_size, tasks: as in `build_network`.
        patch: side of the input in voxels.
    """
    network = build_network(preset, feature_size, tasks, ANCHORS).to("meta")
    image = torch.empty(1, SEQUENCE_COUNT, patch, patch, patch, device="meta")
    with FlopCounterMode(display=False) as counter:
        kept = _kept_bytes(network, image)
    recompute_activations(network)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Counted(parameters, counter.get_total_flops(), kept, _kept_bytes(network, image))


def _kept_bytes(network: TaskNetwork, image: torch.Tensor) -> int:
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(image)
    del output  # its graph has kept every storage alive, and so every address apart
    return sum(kept.values())


def measure(
    preset: str, feature_size: int, tasks: Sequence[str], patch: int, device: str, warm_up: int, repeats: int
) -> Measured:
    """Time passes of a network with random weights, in the form that an analysis uses, and note the peak of memory.

    Args:
        preset, feature_size, tasks, patch: as in `count`.
        device: torch's name of it.
        warm_up: passes that are not timed.
        repeats: passes that are.
    """
    where = torch.device(device)
    base = _memory(where)
    torch.manual_seed(0)
    network = build_network(preset, feature_size, tasks, ANCHORS).to(where).eval()
    network.multiply_out()
    image = torch.randn(1, SEQUENCE_COUNT, patch, patch, patch, device=where)
    seconds, processor = [], []
    with torch.inference_mode():
        for _ in range(warm_up + repeats):
            _synchronise(where)
            start, busy = time.perf_counter(), time.process_time()
            network(image)
            _synchronise(where)
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
    return Measured(seconds[warm_up:], processor[warm_up:], base, _memory(where))


def measure_apart(
    preset: str, feature_size: int, tasks: Sequence[str], patch: int, device: str, warm_up: int, repeats: int
) -> Measured:
    """`measure` in a process of its own, so that no earlier network's memory counts.

    Raises:
        OutOfResources: ``benchmark-failed``, mostly for want of memory.
    """
    plain = {"preset": preset, "feature_size": feature_size, "tasks": list(tasks), "patch": patch, "device": device}
    plain |= {"warm_up": warm_up, "repeats": repeats}
    command = [sys.executable, "-m", "MTMed3DCore.efficiency", json.dumps(plain)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        text = f"The network for {', '.join(tasks)} could not be measured: {last}."
        raise OutOfResources("benchmark-failed", text, "Take a smaller --patch or --feature-size, or another device.")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def compare_tasks(
    *,
    preset: str = "mtmed3d",
    feature_size: int = 48,
    patch: int = 96,
    device: str = "cpu",
    warm_up: int = 1,
    repeats: int = 5,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Count and measure every variant.

    Returns:
        As JSON types: ``setting``, and ``variants`` with the fields of `Counted` and `Measured` by name.
    """
    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    setting = {"preset": preset, "feature_size": feature_size, "patch": patch, "device": device, "device_name": name}
    setting |= {"threads": torch.get_num_threads(), "warm_up": warm_up, "repeats": repeats}
    setting |= {"mtmed3d": MTMed3DCore.__version__, "torch": torch.__version__}
    variants: dict[str, Any] = {}
    for number, (variant, tasks) in enumerate(VARIANTS.items()):
        progress("infer", number / len(VARIANTS), variant)
        measured = measure_apart(preset, feature_size, tasks, patch, device, warm_up, repeats)
        variants[variant] = {**asdict(count(preset, feature_size, tasks, patch)), **asdict(measured)}
    progress("infer", 1.0, "done")
    return {"setting": setting, "variants": variants}


HEADINGS = (
    "model",
    "parameters, M",
    "GFLOP",
    "time, s",
    "processor, s",
    "memory, MiB",
    "activations, MiB",
    "checkpointed, MiB",
)

LARGEST_FROM = 4
"""Figure from which on the largest of three networks counts, not their sum."""


def table_rows(result: dict[str, Any]) -> list[list[str]]:
    """One row a variant, then the three single-task networks together, then the one in parts of the three.

    Memory is the highest above what the process held before; the three run one after another, so the largest counts.
    """
    figures = {name: _figures(variant) for name, variant in result["variants"].items()}
    singles = [figures[task] for task in TASKS]
    together = [
        max(column) if index >= LARGEST_FROM else sum(column) for index, column in enumerate(zip(*singles, strict=True))
    ]
    rows = [[name, *_written(values)] for name, values in figures.items()]
    rows.append(["three single-task", *_written(together)])
    # A process that has memory to spare grows by nothing, and then there is no ratio.
    shares = [one / three if three else math.nan for one, three in zip(figures[MULTI], together, strict=True)]
    return [*rows, ["multi / three", *(f"{share:.2f}" for share in shares)]]


def as_markdown(result: dict[str, Any]) -> str:
    """The table, and how it came about."""
    setting = result["setting"]
    lines = [
        f"# One multi-task network against three: {setting['feature_size']} features, {setting['patch']} voxels",
        "",
    ]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows(result)]
    lines += [
        "",
        f"Preset {setting['preset']}, one patch, on {setting['device']} ({setting['device_name']}, "
        f"{setting['threads']} threads), torch {setting['torch']}, MTMed3D {setting['mtmed3d']}.",
        "",
        "GFLOP: 2 for a multiply and an add, forward. "
        f"Time: median of {setting['repeats']} passes after {setting['warm_up']} of warm-up, device synchronised, "
        "single precision, no gradients; processor: of all its threads. "
        "Memory: peak above what the process held before the network was built. "
        "Activations: counted, what a training step keeps for its backward pass in single precision, without and with "
        "gradient checkpointing. The three run one after another: their times add up, and the largest memory counts. "
        "Grading reads the segmentation, so its network has that decoder too.",
    ]
    return "\n".join(lines) + "\n"


def _figures(variant: dict[str, Any]) -> list[float]:
    return [
        variant["parameters"] / 1e6,
        variant["flops"] / 1e9,
        median(variant["seconds"]),
        median(variant["processor_seconds"]),
        (variant["peak_bytes"] - variant["base_bytes"]) / MIB,
        variant["activation_bytes"] / MIB,
        variant["checkpointed_bytes"] / MIB,
    ]


def _written(values: Sequence[float]) -> list[str]:
    return [f"{value:.{digits}f}" for value, digits in zip(values, (2, 1, 3, 3, 0, 0, 0), strict=True)]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _memory(device: torch.device) -> int:
    """Highest memory so far in bytes: of the GPU as torch has it, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # the peak of this program alone; getrusage also counts the one that started it
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def main() -> None:
    """Measure what the one argument, as JSON, says; for `measure_apart`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("measurement", type=json.loads)
    print(json.dumps(asdict(measure(**parser.parse_args().measurement))))


if __name__ == "__main__":
    main()
