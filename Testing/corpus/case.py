"""A case of the corpus: what is given, and the one outcome that is right."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SEQUENCES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Given:
    """What an asker hands over.

    Args:
        files: path of each sequence; empty where a folder or list is given.
        place: folder of a study, or a list of studies, which only the command line takes.
        options: further fields of the request, which are options of the command line too: ``model``, ``mask``, ...
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    place: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """The right outcome.

    Args:
        kind: ``"refused"``, ``"warned"`` (analysed, with a warning) or ``"analysed"`` (without one about the input).
        code: of the refusal or of the warning.
        names: what the text must hold, so that the reader knows which file or field is meant.
        same: the segmentation is, voxel for voxel in the world, that of the plain study.
    """

    kind: str
    code: str = ""
    names: str = ""
    same: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.code))) + (", result of the plain study" if self.same else "")


Write = Callable[[Path], Given | None]


@dataclass(frozen=True)
class Case:
    """One bad or awkward input.

    Args:
        name: of the function that writes it.
        subject: of the module that holds it.
        write: spoils the plain study in a folder of its own; returns what is given, by default the four files.
        expected: the one right outcome.
        plain: the folder holds the plain study before `write`; otherwise it is empty.
    """

    name: str
    subject: str
    write: Write
    expected: Expected
    plain: bool = True

    def make(self, folder: Path, plain: Path) -> Given:
        """Write the case into `folder`, which is made; `plain` holds the plain study."""
        if self.plain:
            shutil.copytree(plain, folder)
        else:
            folder.mkdir(parents=True)
        return self.write(folder) or four_files(folder)


class Subject(list[Case]):
    """The cases of one module, collected by its decorators."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def refuses(self, code: str, names: str = "", *, plain: bool = True) -> Callable[[Write], Write]:
        """The case is refused with this code, naming this."""
        return self._add(Expected("refused", code, names), plain)

    def warns(self, code: str, names: str = "", *, same: bool = False) -> Callable[[Write], Write]:
        """The case is analysed, with this warning."""
        return self._add(Expected("warned", code, names, same), True)

    def analyses(self, *, same: bool = False) -> Callable[[Write], Write]:
        """The case is analysed, without a warning about the input."""
        return self._add(Expected("analysed", same=same), True)

    def _add(self, expected: Expected, plain: bool) -> Callable[[Write], Write]:
        def register(write: Write) -> Write:
            self.append(Case(write.__name__, self.name, write, expected, plain))
            return write

        return register


def four_files(folder: Path, **replaced: Path) -> Given:
    """The files of the plain study in `folder`, some replaced by others."""
    return Given({name: replaced.get(name, folder / f"{name}.nii.gz") for name in SEQUENCES})
