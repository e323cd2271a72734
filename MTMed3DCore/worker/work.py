"""What the commands do that take longer than a moment."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from MTMed3DCore.progress import Progress
from MTMed3DCore.worker.cancelling import Stop

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.networks import TaskNetwork

LAST_STOP = 0.9
"""Fraction of the stage ``write`` from which on a result is completed rather than cancelled: only renaming is left."""
Answer = dict[str, Any]
_HEAVY = ("MTMed3DCore.study", "MTMed3DCore.bundles", "MTMed3DCore.inference.computing", "MTMed3DCore.exports")
_importing = threading.Lock()


def import_safely(*names: str) -> None:
    """Load modules, one thread at a time, since large packages import in circles."""
    with _importing:
        for name in names:
            import_module(name)


@dataclass(frozen=True)
class _Loaded:
    key: tuple[object, ...]
    network: TaskNetwork


class Work:
    """The commands, and the network that is kept from one to the next."""

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None

    def load(self, fields: Mapping[str, Any], stop: Stop, progress: Progress) -> Answer:
        """Load the libraries and a network, so that the next analysis need not."""
        progress("prepare", 0.0, "Loading the libraries")
        import_safely(*_HEAVY)
        stop.check()
        bundle, network = self._model(fields, progress)
        stop.settle()
        device = str(next(network.parameters()).device)
        return {"model": bundle.name, "version": bundle.version, "device": device}

    def analyze(self, fields: Mapping[str, Any], stop: Stop, progress: Progress) -> Answer:
        """Read, analyse and write one study; nothing is written where it is stopped.

        Raises:
            MTMed3DError: as `Study.read`, `read_mask`, `read_preparation`, `read_findings`, `inference.analyze` and
                `write_findings` do.
        """

        def tell(stage: str, fraction: float, text: str) -> None:
            if stage == "write" and fraction >= 1.0:
                pass  # it stands already
            elif stage == "write" and fraction >= LAST_STOP:
                stop.settle()
            else:
                stop.check()
            progress(stage, fraction, text)

        tell("read", 0.0, "Loading the libraries")
        import_safely(*_HEAVY)
        from MTMed3DCore.exports import read_findings
        from MTMed3DCore.inference import analyze, choose_device
        from MTMed3DCore.preparation.record import read_mask, read_preparation
        from MTMed3DCore.study import Study

        stop.check()
        began = perf_counter()
        prior = read_findings(fields["prior"]) if "prior" in fields else None
        files = {name: Path(path) for name, path in fields["inputs"].items()}
        study = Study.read(t1=files["t1"], t1ce=files["t1ce"], t2=files["t2"], flair=files["flair"], progress=tell)
        if "study" in fields:
            study = replace(study, id=fields["study"])
        given: dict[str, Any] = {
            "mask": read_mask(fields["mask"], study.grid) if "mask" in fields else None,
            "preparation": read_preparation(fields["preparation"], study.grid) if "preparation" in fields else None,
            "prior": prior,
        }
        read_s = perf_counter() - began
        try:
            bundle, network = self._model(fields, tell)
            # The device by its name: where its memory ends, the asker is told, and decides whether the CPU goes on.
            device, precision = str(choose_device(fields.get("device", "auto"))), fields.get("precision", "auto")
            with stop.between_layers():
                findings = analyze(study, bundle, device, precision, tell, network=network, read_s=read_s, **given)
        finally:
            _free_device_memory()
        stop.check()
        written = findings.write(Path(fields["output"]), overwrite=fields.get("overwrite", False), progress=tell)
        return {
            "findings": str(written),
            "device": findings.software["device"],
            "warnings": [warning.text for warning in findings.warnings],
            "score_threshold": bundle.settings.score_threshold,
            "preparation": None if findings.preparation is None else findings.preparation.document(),
        }

    def models(self) -> Answer:
        """Every model for brain studies that a name finds."""
        import_safely("MTMed3DCore.bundles")  # without torch
        from MTMed3DCore.bundles import list_bundles

        listed = [
            {"name": b.name, "version": b.version, "trained_on": b.trained_on, "family": b.family}
            for b in list_bundles()
            if b.for_studies
        ]
        return {"models": listed}

    def devices(self) -> Answer:
        """Devices that an analysis can use, the automatic choice first."""
        import_safely(*_HEAVY)
        import torch

        from MTMed3DCore.inference import choose_device

        devices = [
            {"device": "auto", "text": f"automatic ({choose_device('auto')})"},
            {"device": "cpu", "text": "CPU"},
        ]
        if torch.cuda.is_available():
            names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
            devices += [{"device": f"cuda:{n}", "text": name} for n, name in enumerate(names)]
        if torch.backends.mps.is_available():
            devices.append({"device": "mps", "text": "Apple GPU"})
        return {"devices": devices}

    def _model(self, fields: Mapping[str, Any], progress: Progress) -> tuple[Bundle, TaskNetwork]:
        """The bundle and its network, kept loaded while the same one is asked for on the same device.

        Reading the bundle checks its other files; a weights file that was written again since is loaded again, and so
        refused where it is not the one that the manifest records.
        """
        from MTMed3DCore.bundles import find_bundle
        from MTMed3DCore.bundles.bundle import WEIGHTS
        from MTMed3DCore.inference import choose_device

        bundle = find_bundle(fields.get("model", "starter"))
        device = choose_device(fields.get("device", "auto"))
        weights = (bundle.folder / WEIGHTS).stat()
        written = (weights.st_dev, weights.st_ino, weights.st_size, weights.st_mtime_ns, weights.st_ctime_ns)
        key = (bundle.sha256, json.dumps(bundle.network_config, sort_keys=True), str(device), written)
        if self._loaded is None or self._loaded.key != key:
            progress("prepare", 0.0, f"Loading the model {bundle.name}")
            self._loaded = None  # frees the memory before the next network takes its own
            self._loaded = _Loaded(key, bundle.load(device))
        return bundle, self._loaded.network


def _free_device_memory() -> None:
    """Give what torch keeps for later back to the GPU, which other programs share; the network stays."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
