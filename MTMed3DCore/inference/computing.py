"""What the network makes of a prepared study, on whatever of the machine's memory suffices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from MTMed3DCore.allocator import give_back_freed_memory, keep_freed_memory
from MTMed3DCore.domain.uncertainty import mirror_disagreement
from MTMed3DCore.inference.compiled import compile_passes, even_batch, is_of_compiler, uncompile
from MTMed3DCore.inference.devices import choose_precision
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
        compiled: have the network compiled; not in the quick mode.

    Raises:
        ModelRefused: outputs that are not finite.
        WrongUse: an unknown precision.
        MemoryError, RuntimeError: memory does not suffice, also on the CPU where the device was left to choose.
    """
    settings = bundle.settings
    notices: list[Notice] = []
    if network is None:
        network, target, notices = _load(bundle, target, may_leave=may_leave)
    chosen = choose_precision(precision, target, network if mode == "quick" else None)
    if compiled:
        compile_passes(network, target)

    def run(rung: Rung) -> tuple[RawResult, float | None]:
        here = network if rung.device == target else bundle.load(rung.device)
        computed = chosen if rung.device == target else choose_precision(precision, rung.device)
        way: dict[str, Any] = {"window": rung.window, "batch": rung.batch, "on_host": rung.on_host}
        if rung.focused:
            way["focus"] = focus_sides(here, len(SEQUENCES), settings.window, rung.device, computed)
        result = run_network(here, prepared, settings, rung.device, computed, progress, **way)
        if not check_uncertainty:
            return result, None
        return result, mirror_disagreement(here, prepared, settings, result, rung.device, computed, progress, **way)

    keep_freed_memory()
    try:
        how = _ways(mode, network, prepared, settings, target, chosen, may_leave=may_leave, compiled=compiled)
        try:
            (raw, differing), rung = climb_down(how, run)
        except Exception as error:
            if not (compiled and is_of_compiler(error)):
                raise
            notices.append(uncompile(network, error))
            (raw, differing), rung = climb_down(how, run)
    finally:
        give_back_freed_memory()
    if rung.notice is not None:
        notices.append(rung.notice)
    if rung.device != target:
        target, chosen = rung.device, choose_precision(precision, rung.device)
    return Computed(raw, differing, str(target), chosen, tuple(notices))


def _load(bundle: Bundle, device: torch.device, *, may_leave: bool) -> tuple[Any, torch.device, list[Notice]]:
    """A bundle's network on a device, or on the CPU where that may take over."""
    try:
        return bundle.load(device), device, []
    except (MemoryError, RuntimeError) as error:
        if not (may_leave and device.type != "cpu" and short_of_memory(error)):
            raise
    return bundle.load("cpu"), torch.device("cpu"), [left_notice(device)]


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
    focused = worth and fits_whole(network, extent, device, precision)
    batch = GPU_BATCH if device.type == "cuda" else 1
    return ladder(device, window, even_batch(len(windows), batch) if compiled else batch, may_leave, focused)
