"""What each command does; one long piece of work at a time, in a thread of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from MTMed3DCore import __version__
from MTMed3DCore.errors import MTMed3DError, OutOfResources, WrongUse
from MTMed3DCore.worker.cancelling import Stop
from MTMed3DCore.worker.protocol import BadRequest, Channel, Request, parse_request, refusal

if TYPE_CHECKING:
    from MTMed3DCore.bundles import Bundle
    from MTMed3DCore.networks import MultiTaskNetwork

LAST_WAIT_S = 2.0
"""How long the process waits for its work to stop before it ends without it."""


class Session:
    """The state of a worker between requests.

    Args:
        channel: where the events go.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._busy: str | None = None
        self._stop = Stop()
        self._thread: threading.Thread | None = None
        self._loaded: tuple[tuple[str, str], Bundle, MultiTaskNetwork] | None = None

    def answer(self, line: str) -> bool:
        """Answer one line; returns whether the process goes on."""
        try:
            request = parse_request(line)
        except BadRequest as error:
            self._channel.send(refusal(error.request_id, error))
            return True
        if request.command in ("analyze", "load"):
            self._begin(request)
            return True
        try:
            self._channel.send({"id": request.id, "event": "result", **self._short(request)})
        except MTMed3DError as error:
            self._channel.send(refusal(request.id, error))
        except Exception:  # a fault of ours must not end the process: the next request may well succeed
            self._channel.send(refusal(request.id, _fault()))
        return request.command != "shutdown"

    def close(self) -> None:
        """Stop what runs, and wait for it a moment."""
        self._stop.wish()
        if self._thread is not None:
            self._thread.join(LAST_WAIT_S)

    def _short(self, request: Request) -> dict[str, Any]:
        """The commands that are answered at once."""
        if request.command == "cancel":
            with self._lock:
                running = self._busy == request.fields["target"]
                if running:
                    self._stop.wish()
            return {"cancelled": running}
        if request.command == "models":
            return {"models": list_models()}
        if request.command == "devices":
            return {"devices": list_devices()}
        return {"busy": self._busy}

    def _begin(self, request: Request) -> None:
        with self._lock:
            if self._busy is not None:
                text = f"The request {self._busy} is still running."
                self._channel.send(refusal(request.id, WrongUse("busy", text, "Wait for it, or cancel it.")))
                return
            self._busy = request.id
            self._stop = Stop()
        work = self._analyze if request.command == "analyze" else self._load
        self._thread = threading.Thread(
            target=self._run, args=(request, work), name=f"request-{request.id}", daemon=True
        )
        self._thread.start()

    def _run(self, request: Request, work: Callable[[Request], dict[str, Any]]) -> None:
        """Do one long piece of work, and send exactly one result or error."""
        try:
            answer = {"id": request.id, "event": "result", **work(request)}
        except MTMed3DError as error:
            answer = refusal(request.id, error)
        except MemoryError:
            text = f"The memory of {request.fields.get('device', 'this machine')} does not suffice."
            answer = refusal(request.id, OutOfResources("memory", text, "Close other programs, or choose the CPU."))
        except OSError as error:
            text = f"{error.filename or 'A file'}: {error.strerror or error}."
            answer = refusal(request.id, WrongUse("file-access", text, "Check the path and its rights."))
        except Exception:
            answer = refusal(request.id, _fault())
        with self._lock:
            self._busy = None  # before the answer, so that whoever has it may ask again at once
        self._channel.send(answer)

    def _load(self, request: Request) -> dict[str, Any]:
        bundle, network = self._model(request.fields)
        device = str(next(network.parameters()).device)
        return {"model": bundle.name, "version": bundle.version, "device": device}

    def _model(self, fields: Mapping[str, Any]) -> tuple[Bundle, MultiTaskNetwork]:
        """The bundle and its network, kept loaded while the same one is asked for on the same device."""
        from MTMed3DCore.bundles import find_bundle
        from MTMed3DCore.inference import choose_device

        bundle = find_bundle(fields.get("model", "starter"))
        device = choose_device(fields.get("device", "auto"))
        key = (bundle.sha256, str(device))
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # frees the memory before the next network takes its own
            self._loaded = (key, bundle, bundle.load(device))
        return bundle, self._loaded[2]

    def _analyze(self, request: Request) -> dict[str, Any]:
        fields, stop = request.fields, self._stop

        def progress(stage: str, fraction: float, text: str) -> None:
            stop.check()
            self._channel.send(
                {
                    "id": request.id,
                    "event": "progress",
                    "stage": stage,
                    "fraction": round(fraction, 4),
                    "text": text,
                }
            )

        progress("read", 0.0, "Starting")
        from MTMed3DCore.inference import analyze
        from MTMed3DCore.study import Study

        began = perf_counter()
        study = Study.read(**{name: Path(path) for name, path in fields["inputs"].items()}, progress=progress)
        if "study" in fields:
            study = replace(study, id=fields["study"])
        read_s = perf_counter() - began
        progress("prepare", 0.0, "Loading the model")
        bundle, network = self._model(fields)
        device, precision = fields.get("device", "auto"), fields.get("precision", "auto")
        with stop.between_layers():
            findings = analyze(study, bundle, device, precision, progress, network=network, read_s=read_s)
        written = findings.write(Path(fields["output"]), overwrite=fields.get("overwrite", False), progress=progress)
        used = findings.software["device"]
        return {"findings": str(written), "device": used, "warnings": [w.text for w in findings.warnings]}


def _fault() -> MTMed3DError:
    """An exception that nobody foresaw; its traceback goes to the log."""
    traceback.print_exc()
    last = traceback.format_exc().strip().splitlines()[-1]
    return MTMed3DError("internal-error", f"Something failed that should not: {last}", "Report it, with the log.")


def list_models() -> list[dict[str, str]]:
    """Every model that a name finds."""
    from MTMed3DCore.bundles import list_bundles

    return [{"name": b.name, "version": b.version, "trained_on": b.trained_on} for b in list_bundles()]


def list_devices() -> list[dict[str, str]]:
    """Devices that an analysis can use, the automatic choice first."""
    import torch

    from MTMed3DCore.inference import choose_device

    devices = [{"device": "auto", "text": f"automatic ({choose_device('auto')})"}, {"device": "cpu", "text": "CPU"}]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        devices += [{"device": f"cuda:{n}", "text": name} for n, name in enumerate(names)]
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "text": "Apple GPU"})
    return devices


def ready_event() -> dict[str, Any]:
    """The first line."""
    return {"event": "ready", "version": __version__, "protocol": 1}
