"""A synthetic study, made by the core in a process of its own; nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SCRIPT = """\
import sys
from pathlib import Path
from MTMed3DCore.synthetic import make_study, write_study
write_study(make_study(int(sys.argv[1])), Path(sys.argv[2]))
"""
SEQUENCES = ("t1", "t1ce", "t2", "flair")


class SampleStudy:
    """A study in the making.

    Args:
        python: the interpreter that has the packages.
        environment: variables to set for it, or to take away where the value is None.
        seed: another number makes another study.
        script: what the interpreter runs; a seed and a folder are its arguments.
    """

    def __init__(
        self,
        python: Sequence[str],
        environment: Mapping[str, str | None] | None = None,
        seed: int = 14,
        script: str = _SCRIPT,
    ) -> None:
        self.seed, self.folder = seed, Path(tempfile.mkdtemp(prefix="mtmed3d-sample-"))
        variables = {**os.environ, **(environment or {})}
        # A file and not a pipe: nobody reads while the process runs, and a full pipe would stop it.
        self._errors = (self.folder / "messages.txt").open("wb")
        self._process = subprocess.Popen(
            [*python, "-c", script, str(seed), str(self.folder / "study")],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env={name: value for name, value in variables.items() if value is not None},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )

    @property
    def finished(self) -> bool:
        """Whether the process has ended; never waits."""
        return self._process.poll() is not None

    def files(self) -> dict[str, Path]:
        """The four volumes.

        Raises:
            RuntimeError: the process failed; the text ends with its last message.
        """
        self._errors.close()
        found = {name: next(iter(sorted((self.folder / "study").glob(f"{name}.nii*"))), None) for name in SEQUENCES}
        if self._process.returncode != 0 or None in found.values():
            lines = (self.folder / "messages.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise RuntimeError(f"The sample study could not be made: {lines[-1] if lines else 'no message'}")
        return {name: path for name, path in found.items() if path is not None}

    def close(self) -> None:
        """End the process and remove its files."""
        if not self.finished:
            self._process.kill()
        self._process.wait()
        self._errors.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def load_volumes(scene: Any, files: Mapping[str, Path]) -> dict[str, Any]:
    """Load the four volumes of a sample study.

    Raises:
        RuntimeError: a file cannot be read.
    """
    import slicer

    nodes = {}
    for name, path in files.items():
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"Sample {name.upper().replace('CE', 'ce')}")
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(path))
        if not storage.ReadData(node):
            raise RuntimeError(f"{path} cannot be read.")
        node.CreateDefaultDisplayNodes()
        nodes[name] = node
    return nodes
