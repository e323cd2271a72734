"""What the network makes of a prepared study, on whatever of the machine's memory suffices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from MTMed3DCore.allocator import give_back_freed_memory, keep_freed_memory
from MTMed3DCore.domain.uncertainty import mirror_disagreement
from MTMed3DCore.inference.compiled import even_batch, run_compiled
from MTMed3DCore.inference.devices import choose_device, choose_precision, full_fp32
from MTMed3DCore.inference.focus import may_focus
from MTMed3DCore.inference.ladder import GPU_BATCH, Rung, climb_down, ladder, left_notice, short_of_memory
from MTMed3DCore.inference.measured import fits_whole, focus_sides
from MTMed3DCore.inference.settings import InferenceSettings
from MTMed3DCore.inference.tiling import plan_windows
from MTMed3DCore.inference.windows import RawResult, run_network
from MTMed3DCore.notice import Notice
from MTMed3DCore.preparation import PreparedStudy
from MTMed3DCore.progress import Progress
from MTMed3DCore.sequences import SEQUENCES

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle


@dataclass(frozen=True, eq=False)
class Computed:
    """What the network made of a study, and how.

    Args:
        raw: its results on the working grid.
        differing: of `mirror_disagreement`, where it was asked for.
        device, precision: that computed in the end.
        notices: where that was not the first choice.
    """

    raw: RawResult
    differing: float | None
    device: str
    precision: str
    notices: tuple[Notice, ...]


def compute(
    bundle: Bundle,
    network: Any,
    prepared: PreparedStudy,
    target: torch.device,
    precision: str,
    progress: Progress,
    *,
    may_leave: bool,
    mode: str,
    check_uncertainty: bool,
    compiled: bool,
) -> Computed:
    """Run a bundle's network on a prepared study; what is not said here is as of `MTMed3DCore.inference.analyze`.

    Args:
        target: the device of the first choice.
        may_leave: whether the CPU may take over from it.
        compiled: have the network compiled; in the exact mode alone.

    Raises:
        ModelRefused: outputs that are not finite.
        WrongUse: an unknown precision.
        MemoryError, RuntimeError: memory does not suffice, also on the CPU where the device was left to choose.
    """
    settings = bundle.settings
    notices: list[Notice] = []
    if network is None:
        network, target, notices = load_network(bundle, target, may_leave=may_leave)
    chosen = choose_precision(precision, target, network if mode == "quick" else None)

    def run(rung: Rung) -> tuple[RawResult, float | None]:
        here = network if rung.device == target else bundle.load(rung.device)
        computed = chosen if rung.device == target else choose_precision(precision, rung.device)
        way: dict[str, Any] = {"window": rung.window, "batch": rung.batch, "lean": mode == "lean"}
        way["on_host"] = rung.on_host
        with full_fp32(rung.device, computed):
            if rung.focused:
                way["focus"] = focus_sides(here, len(SEQUENCES), settings.window, rung.device, computed)
            result = run_network(here, prepared, settings, rung.device, computed, progress, **way)
            if not check_uncertainty:
                return result, None
            also = mirror_disagreement(here, prepared, settings, result, rung.device, computed, progress, **way)
            return result, also

    def ways(*, compiled: bool) -> list[Rung]:
        return _ways(mode, network, prepared, settings, target, chosen, may_leave=may_leave, compiled=compiled)

    keep_freed_memory()
    try:
        found = None
        if compiled:
            first = ways(compiled=True)[0]
            made, refused = run_compiled(network, target, lambda: run(first))
            found = None if made is None else (made, first)
            notices += [] if refused is None else [refused]
        (raw, differing), rung = found or climb_down(ways(compiled=False), run)
    finally:
        give_back_freed_memory()
    if rung.notice is not None:
        notices.append(rung.notice)
    if rung.device != target:
        target, chosen = rung.device, choose_precision(precision, rung.device)
    return Computed(raw, differing, str(target), chosen, tuple(notices))


def load_network(bundle: Bundle, device: torch.device, *, may_leave: bool) -> tuple[Any, torch.device, list[Notice]]:
    """A bundle's network on a device, or on the CPU where that may take over; with it where it is, and what to say.

    Args:
        device: of the first choice.
        may_leave: whether the CPU may take over from it.

    Raises:
        ModelRefused: of `Bundle.load`.
        MemoryError, RuntimeError: memory does not suffice, also on the CPU where that may take over.
    """
    try:
        return bundle.load(device), device, []
    except (MemoryError, RuntimeError) as error:
        if not (may_leave and device.type != "cpu" and short_of_memory(error)):
            raise
    return bundle.load("cpu"), torch.device("cpu"), [left_notice(device)]


def load_named(bundle: Bundle, device: str) -> tuple[Any, str, list[Notice]]:
    """`load_network` for a device by its name; with the name that `analyze` is to be given from then on.

    Raises:
        WrongUse: an unknown or absent device.
    """
    network, there, notices = load_network(bundle, choose_device(device), may_leave=device == "auto")
    return network, str(there) if notices else device, notices


def _ways(
    mode: str,
    network: Any,
    prepared: PreparedStudy,
    settings: InferenceSettings,
    device: torch.device,
    precision: str,
    *,
    may_leave: bool,
    compiled: bool,
) -> list[Rung]:
    """How to run, and how else where memory is short."""
    window = (settings.window,) * 3
    extent = prepared.grid.shape
    windows = plan_windows(extent, settings.window)[1]
    worth = mode == "quick" and may_focus(network, windows)
    fits = worth and fits_whole(network, extent, device, precision)
    batch = GPU_BATCH if device.type == "cuda" else 1
    batch = even_batch(len(windows), batch) if compiled else batch
    return ladder(device, window, batch, may_leave, focused=fits, too_large=worth and not fits)
