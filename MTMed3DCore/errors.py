"""Every refusal that a user can meet, with a code, a reason and a remedy.

The command line turns an error into its exit code, the worker into one error event; neither shows a traceback for
anything raised from here.
"""

from __future__ import annotations


class MTMed3DError(Exception):
    """A refusal with a reason.

    Args:
        code: stable name of the refusal in kebab case, for example ``"sequence-missing"``; what programs test for.
        text: one sentence for a person, naming the file or field and the value that was met.
        remedy: one sentence that says what to do about it.
    """

    exit_code = 1

    def __init__(self, code: str, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.text} {self.remedy}".strip()


class WrongUse(MTMed3DError):
    """The command or call itself is wrong: an unknown option value, an output folder that is a file."""

    exit_code = 2


class InputRefused(MTMed3DError):
    """A study cannot be analysed as it is given."""

    exit_code = 3


class ModelRefused(MTMed3DError):
    """A model bundle or checkpoint is missing, damaged, tampered with or of another architecture."""

    exit_code = 4


class OutOfResources(MTMed3DError):
    """Memory or disk does not suffice, also after every fallback."""

    exit_code = 5


class Cancelled(MTMed3DError):
    """The user cancelled; nothing was written."""

    exit_code = 130

    def __init__(self, text: str = "Cancelled.") -> None:
        super().__init__("cancelled", text)
