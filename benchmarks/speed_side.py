"""One side of ``speed.py``, in a process of its own: a request a line on standard input, its figures a line back."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from torch.utils.flop_counter import FlopCounterMode
from widening import widened

from MTMed3DCore.allocator import give_back_freed_memory, keep_freed_memory
from MTMed3DCore.bundles import find_bundle
from MTMed3DCore.geometry import Grid
from MTMed3DCore.inference import InferenceSettings
from MTMed3DCore.inference.compiled import compile_passes
from MTMed3DCore.inference.devices import full_fp32
from MTMed3DCore.inference.ladder import GPU_BATCH
from MTMed3DCore.inference.measured import fits_whole, focus_sides
from MTMed3DCore.inference.tiling import Triple, Window, padded_extent, windows_at
from MTMed3DCore.inference.windows import run_network
from MTMed3DCore.networks import MultiTaskNetwork, build_network
from MTMed3DCore.preparation import PreparedStudy, prepare
from MTMed3DCore.study import Study

SIDES = ("plain", "ours")
STUDY = "study"
SAME, SAME_LEAN = "same", "same-lean"
"""Modes in which our side takes the plain side's windows: what differs then is rounding alone, and what is left out."""
PARTS = ("encoder", "segmentation decoder", "detection decoder", "grading branch", "whole window")
OVERLAP = 0.25
ANCHORS = [[12.0, 12.0, 12.0]]


def network_of(
    name: str, features: int, device: torch.device, weights: str | None = None, *, compiled: bool = False
) -> MultiTaskNetwork:
    """The network of a side: as MONAI's forward with its defaults, or as ours.

    Args:
        name: one of `SIDES`.
        features: of the network.
        device: to compute on.
        weights: name or folder of a bundle whose function the network gets, however many features it has; the same
            random weights for both sides where there is none.
        compiled: ours by torch's compiler, as `mtmed3d analyze --compile` has it.
    """
    torch.manual_seed(0)
    made = widened(find_bundle(weights).load("cpu"), features) if weights else build_network("mtmed3d", features)
    network = made.to(device).eval()
    if name == "ours":
        network.multiply_out()
        if compiled:
            compile_passes(network, device)
        return network
    for module in network.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = False
    # The class's `encode` is ours; the plain side asks MONAI's encoder itself.
    network.encode = lambda x: network.encoder(x)  # type: ignore[method-assign]
    return network


def parts_of(network: MultiTaskNetwork, features: int, side: int) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """Each part as a call without arguments; the same input to every network of the same size."""
    device = next(network.parameters()).device
    random = torch.Generator().manual_seed(1)

    def noise(channels: int, stride: int) -> torch.Tensor:
        return torch.randn(1, channels, *(side // stride,) * 3, generator=random).to(device)

    x, logits = noise(4, 1), noise(3, 1)
    levels = [noise(features * 2**level, 2 ** (level + 1)) for level in range(5)]

    def whole() -> list[torch.Tensor]:
        output = network(x)
        assert output.segmentation is not None
        assert output.grade is not None
        return [output.segmentation, output.grade, *(each for pair in output.detection or [] for each in pair)]

    return {
        "encoder": lambda: list(network.encode(x)),
        "segmentation decoder": lambda: [_there(network.segment(x, levels))],
        "detection decoder": lambda: [each for pair in network.detect(levels) or [] for each in pair],
        "grading branch": lambda: [_there(network.grade(logits))],
        "whole window": whole,
    }


def _there(output: torch.Tensor | None) -> torch.Tensor:
    assert output is not None
    return output


def count_flops(features: int, side: int, part: str) -> int:
    """Operations of the plain form of a part, a multiply and an add being two, by PyTorch's counter."""
    network = network_of("plain", features, torch.device("meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        parts_of(network, features, side)[part]()
    return counter.get_total_flops()


def whole_volume(study: Study, spacing_mm: float, prepared: PreparedStudy) -> tuple[torch.Tensor, list[int]]:
    """What a plain implementation computes on, the whole field of view, and where the brain's box begins in it."""
    extent = np.asarray(study.grid.shape) * np.asarray(study.grid.spacing) / spacing_mm
    shape = np.maximum(np.round(extent).astype(int), prepared.grid.shape)
    volume = torch.zeros((1, 4, *shape.tolist()))
    first = [int(s - n) // 2 for s, n in zip(shape, prepared.grid.shape, strict=True)]
    where = tuple(slice(f, f + n) for f, n in zip(first, prepared.grid.shape, strict=True))
    volume[(0, slice(None), *where)] = torch.from_numpy(prepared.image)
    return volume, first


def in_field_of_view(prepared: PreparedStudy, volume: torch.Tensor, box: tuple[slice, ...]) -> PreparedStudy:
    """A prepared study on the whole field of view, not on the box of the brain."""
    image = volume[0].numpy()
    brain = np.zeros(image.shape[1:], dtype=bool)
    brain[box] = prepared.brain
    x, y, z = brain.shape
    return replace(prepared, image=image, brain=brain, grid=Grid((x, y, z), prepared.grid.affine))


def monai_windows(shape: Triple, side: int) -> list[Window]:
    """The windows of MONAI's sliding window."""
    step = int(side * (1 - OVERLAP))
    places = dense_patch_slices(shape, (side, side, side), (step, step, step))
    starts = [sorted({place[axis].start for place in places}) for axis in range(3)]
    return windows_at(starts, (side, side, side), padded_extent(shape))


def plain_study(network: MultiTaskNetwork, volume: torch.Tensor, side: int, device: torch.device) -> torch.Tensor:
    """All tasks by MONAI's sliding window, the grade once on the middle of the volume; the probabilities."""

    def window(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        levels = network.encode(x)
        maps = [each for level in network.detect(levels) or [] for each in level]
        return (_there(network.segment(x, levels)).sigmoid(), *maps)

    outputs = sliding_window_inference(volume.to(device), side, 1, window, overlap=OVERLAP, mode="gaussian")
    regions: torch.Tensor = outputs[0]
    middle = [slice(max(0, (n - side) // 2), max(0, (n - side) // 2) + side) for n in regions.shape[2:]]
    network.grade(regions[(..., *middle)].logit(eps=1e-6))
    return regions.float().cpu()


def study_call(name: str, network: MultiTaskNetwork, setting: dict[str, Any]) -> Callable[[], list[torch.Tensor]]:
    """From the prepared volume to the regions on the box of the brain, as probabilities above their thresholds."""
    side, device, precision = setting["side"], torch.device(setting["device"]), setting["precision"]
    weights = setting["weights"]
    settings = (
        find_bundle(weights).settings if weights else InferenceSettings(anchor_shapes=network.num_anchors * ANCHORS)
    )
    settings = replace(settings, spacing_mm=setting["spacing_mm"], window=side, grading_crop=side)
    levels = torch.tensor(settings.region_thresholds).view(3, 1, 1, 1)
    study = Study.read(Path(setting["study"]))
    prepared = prepare(study, spacing_mm=setting["spacing_mm"], normalisation="zscore_brain")
    brain = torch.from_numpy(prepared.brain)

    def above(probabilities: torch.Tensor) -> list[torch.Tensor]:
        return [torch.where(brain, probabilities - levels, torch.tensor(-1.0))[None]]

    way: dict[str, Any] = {"batch": GPU_BATCH if device.type == "cuda" else 1}
    way["lean"] = setting["mode"] in ("lean", SAME_LEAN)
    if name == "plain" or setting["mode"] in (SAME, SAME_LEAN):
        volume, first = whole_volume(study, setting["spacing_mm"], prepared)
        box = (slice(None), *(slice(f, f + n) for f, n in zip(first, prepared.grid.shape, strict=True)))
        if name == "plain":
            return lambda: above(plain_study(network, volume, side, device)[(0, *box)])
        inside = in_field_of_view(prepared, volume, box[1:])
        way["tiling"] = monai_windows(inside.grid.shape, side)
        run = partial(run_network, network, inside, settings, device, precision, **way)
        return lambda: above(torch.from_numpy(run().regions[box]))
    if setting["mode"] == "quick" and fits_whole(network, prepared.grid.shape, device, precision):
        way["focus"] = focus_sides(network, 4, side, device, precision)
    return lambda: above(torch.from_numpy(run_network(network, prepared, settings, device, precision, **way).regions))


def main() -> None:
    """Serve requests until the input ends."""
    name, setting = sys.argv[1], json.loads(sys.argv[2])
    device = torch.device(setting["device"])
    network = network_of(name, setting["features"], device, setting["weights"], compiled=setting["compiled"])
    calls = parts_of(network, setting["features"], setting["side"])
    if setting["study"]:
        calls[STUDY] = study_call(name, network, setting)
    if name == "ours":  # as an analysis does, once the study is prepared
        give_back_freed_memory()
        keep_freed_memory()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(answer(calls[request["part"]], request["output"], setting, device)), flush=True)


def answer(
    call: Callable[[], list[torch.Tensor]], output: str | None, setting: dict[str, Any], device: torch.device
) -> dict[str, float]:
    """One call: its figures; its tensors go to the file `output`."""
    synchronise = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    rounded = torch.autocast(device.type, torch.bfloat16, enabled=setting["precision"] == "bf16")
    with torch.no_grad(), rounded, full_fp32(device, setting["precision"]):
        synchronise()
        started, busy = time.perf_counter(), time.process_time()
        made = call()
        synchronise()
        figures = {"seconds": time.perf_counter() - started, "processor_s": time.process_time() - busy}
    if output is not None:
        torch.save([each.float().cpu() for each in made], output)
    if device.type == "cuda":
        return figures | {"peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    return figures | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


if __name__ == "__main__":
    main()
