"""What became of one study."""

from __future__ import annotations

from dataclasses import dataclass

from MTMed3DCore.errors import MTMed3DError


@dataclass(frozen=True)
class Refusal:
    """A refusal in plain values, which go from process to process and into files; see `MTMed3DError`."""

    code: str
    text: str
    remedy: str
    exit_code: int

    @classmethod
    def of(cls, error: MTMed3DError) -> Refusal:
        """That of an error."""
        return cls(error.code, error.text, error.remedy, error.exit_code)

    def error(self) -> MTMed3DError:
        """The refusal as an error again."""
        error = MTMed3DError(self.code, self.text, self.remedy)
        error.exit_code = self.exit_code
        return error


@dataclass(frozen=True)
class Outcome:
    """What became of one study.

    Args:
        name: of the study.
        refusal: why there is no result, or None where there is one.
        kept: whether the result was there already.
        fatal: whether the refusal would be every other study's too, so that the run ends.
        seconds: that the study took.
        text: what was found, in a few words.
    """

    name: str
    refusal: Refusal | None = None
    kept: bool = False
    fatal: bool = False
    seconds: float = 0.0
    text: str = ""
