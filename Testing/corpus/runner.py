"""Runs a case through the entrances of the software, and says what came out in the same words for each."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from MTMed3DCore import cli
from Testing.corpus.case import Expected, Given

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
ABOUT_INPUT = (
    "resampled",
    "sequence-alike",
    "contrast-kinship",
    "contrast-fluid",
    "contrast-enhancement",
    "slices-uneven",
    "files-twice",
    "frames-differ",
    "sequence-several",
    "registration-failed",
    "brain-not-covered",
)
"""Warnings about what was given; others, as those of an untrained network's boxes, are no matter of the corpus."""
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Got:
    """What came out.

    Args:
        kind: ``"refused"``, ``"analysed"``, or ``"crashed"`` where neither a refusal nor a result came.
        codes: of the refusal, or of every warning about the input.
        text: of the refusal or warnings.
        remedy: of the refusal.
        labels: of the result, as `canonical_labels` reads them.
    """

    kind: str
    codes: tuple[str, ...] = ()
    text: str = ""
    remedy: str = ""
    labels: Labels | None = None

    def __str__(self) -> str:
        return " ".join((self.kind, *self.codes))


def through_cli(given: Given, output: Path, model: Path) -> Got:
    """`mtmed3d analyze` in this process."""
    options = {"model": str(model), "device": "cpu", **given.options}
    where = [str(given.place)] if given.place else [f"--{name}={path}" for name, path in given.files.items()]
    arguments = ["analyze", *where, "-o", str(output), "--json", *(f"--{k}={v}" for k, v in options.items())]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
            status = cli.main(arguments)
        answer = json.loads(shown.getvalue())
    except Exception as error:  # whatever comes here is a fault of the software, and a row of the table
        return Got("crashed", (type(error).__name__,), str(error))
    if status:
        error = answer.get("error") or next(each["error"] for each in answer["studies"] if each["error"])
        return Got("refused", (error["code"],), error["text"], error["remedy"])
    return analysed(output)


class Worker:
    """One worker process for any number of cases."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._number = 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "MTMed3DCore.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """Process id; the same after every case, since no input may end the worker."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def __call__(self, given: Given, output: Path) -> Got | None:
        """Analyse a case; None where the protocol has no way to ask for it, as for a folder or a list."""
        if given.place is not None:
            return None
        inputs = {name: str(path) for name, path in given.files.items()}
        fields = {"inputs": inputs, "output": str(output), "model": str(self._model), "device": "cpu", **given.options}
        answer = self._ask({"command": "analyze", **fields})
        if answer["event"] == "result":
            return analysed(output)
        kind = "crashed" if answer["code"] in ("internal-error", "worker-died") else "refused"
        return Got(kind, (answer["code"],), answer["text"], answer["remedy"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._number += 1
        request = {"id": str(self._number), **request}
        late = threading.Timer(PATIENCE_S, self._process.kill)
        late.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                event: dict[str, Any] = json.loads(line)
                if event.get("id") == request["id"] and event["event"] != "progress":
                    return event
        except BrokenPipeError:
            pass
        finally:
            late.cancel()
        return {"event": "error", "code": "worker-died", "text": "The worker ended.", "remedy": ""}

    def close(self) -> None:
        """End the process as its asker's end does."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()


def analysed(output: Path) -> Got:
    """A written result."""
    document = json.loads((output / "findings.json").read_text(encoding="utf-8"))
    warnings = [each for each in document["warnings"] if each["code"] in ABOUT_INPUT]
    codes = tuple(dict.fromkeys(each["code"] for each in warnings))
    return Got("analysed", codes, " ".join(each["text"] for each in warnings), labels=canonical_labels(output))


def faults(expected: Expected, got: Got, plain: Labels) -> list[str]:
    """What is not as expected, in words; nothing where the outcome is right."""
    kind = "analysed" if expected.kind == "warned" else expected.kind
    found = [] if got.kind == kind else [f"it was {got.kind} ({', '.join(got.codes)}): {got.text}"]
    if expected.code and expected.code not in got.codes:
        found.append(f"the code {expected.code} is not among {', '.join(got.codes) or 'none'}")
    if expected.kind == "analysed" and got.codes:
        found.append(f"there is a warning: {got.text}")
    if expected.names and expected.names not in got.text:
        found.append(f"{expected.names!r} is not named in {got.text!r}")
    if got.kind == "refused" and not got.remedy:
        found.append("there is no remedy")
    if got.labels is not None and expected.same:
        same_grid = got.labels.shape == plain.shape
        share = float((got.labels == plain).mean()) if same_grid else 0.0
        if share < 1:
            found.append(f"only {share:.2%} of the voxels are labelled as in the plain study")
    return found


def canonical_labels(output: Path) -> Labels:
    """The written segmentation, its axes turned to run right, anterior, superior."""
    image = nibabel.as_closest_canonical(nibabel.load(output / "segmentation.nii.gz"))
    return np.asarray(image.dataobj, dtype=np.uint8)
