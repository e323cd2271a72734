"""The lines that go in and out: a private standard output, and requests checked before anything is done."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from MTMed3DCore.errors import MTMed3DError, WrongUse

LONGEST_LINE = 1_000_000
"""Characters; no request comes near it."""
TEXT_FIELDS = ("output", "model", "device", "precision", "study", "mask", "preparation", "prior", "target")
REQUIRED = {"analyze": ("inputs", "output"), "cancel": ("target",)}
COMMANDS = ("analyze", "load", "models", "devices", "cancel", "ping", "shutdown")
SEQUENCES = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Request:
    """One checked request.

    Args:
        id: chosen by the asker.
        command: one of `COMMANDS`.
        fields: everything else.
    """

    id: str
    command: str
    fields: Mapping[str, Any]


class Channel:
    """Writes events, one JSON object a line, from any thread.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, event: Mapping[str, Any]) -> None:
        """Write one event; an asker that has gone away is no error here, since standard input will end as well."""
        line = json.dumps(event, ensure_ascii=True)
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (BrokenPipeError, ValueError, OSError):
                pass


def refusal(request_id: str | None, error: MTMed3DError) -> dict[str, Any]:
    """The error event of a request."""
    return {"id": request_id, "event": "error", "code": error.code, "text": error.text, "remedy": error.remedy}


def private_stdout() -> TextIO:
    """Standard output for the events alone: whatever else prints, in Python or in C, goes to standard error."""
    private = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    return os.fdopen(private, "w", encoding="utf-8", newline="\n")


def parse_request(line: str) -> Request:
    """A line as a request.

    Raises:
        BadRequest: with the id where there is one.
    """
    if len(line) > LONGEST_LINE:
        raise BadRequest(None, "line-too-long", f"A request of {len(line)} characters is not read.")
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRequest(None, "not-json", f"A request is no JSON: {error}.") from error
    if not isinstance(document, dict):
        raise BadRequest(None, "not-json", "A request is a JSON object.")
    fields = dict(document)
    request_id = fields.pop("id", None)
    if not isinstance(request_id, str) or not request_id:
        raise BadRequest(None, "id-missing", f"A request needs an id, a text; it has {request_id!r}.")
    command = fields.pop("command", None)
    if command not in COMMANDS:
        raise BadRequest(request_id, "command-unknown", f"There is no command {command!r}.")
    _check_fields(request_id, command, fields)
    return Request(request_id, command, fields)


def _check_fields(request_id: str, command: str, fields: Mapping[str, Any]) -> None:
    for name in REQUIRED.get(command, ()):
        if name not in fields:
            raise BadRequest(request_id, "field-missing", f"The command {command} needs {name!r}.")
    for name in TEXT_FIELDS:
        if name in fields and (not isinstance(fields[name], str) or not fields[name]):
            raise BadRequest(request_id, "field-invalid", f"{name!r} is a text; it is {fields[name]!r}.")
    if not isinstance(fields.get("overwrite", False), bool):
        raise BadRequest(request_id, "field-invalid", f"'overwrite' is true or false; it is {fields['overwrite']!r}.")
    if command == "analyze":
        inputs = fields["inputs"]
        named = isinstance(inputs, dict) and set(inputs) == set(SEQUENCES)
        if not named or not all(isinstance(path, str) and path for path in inputs.values()):
            raise BadRequest(request_id, "field-invalid", f"'inputs' names a file for each of {', '.join(SEQUENCES)}.")


class BadRequest(WrongUse):
    """A line that cannot be answered otherwise.

    Args:
        request_id: of the request, as far as it could be read.
    """

    def __init__(self, request_id: str | None, code: str, text: str) -> None:
        super().__init__(code, text, "See the documentation of MTMed3DCore.worker.")
        self.request_id = request_id
