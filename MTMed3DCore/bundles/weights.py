"""The header of a safetensors file, looked at before anything is made of what it claims.

A file is eight bytes with the header's length (little endian), the header as JSON, and the tensors' bytes; see
https://github.com/huggingface/safetensors. The library checks the rest: kinds, shapes, and that no two tensors overlap.
"""

from __future__ import annotations

import json
from pathlib import Path

from MTMed3DCore.errors import ModelRefused

MAX_HEADER_BYTES = 4 << 20
"""Of the JSON that names the tensors; that of the published network has a fiftieth of it."""
_LENGTH_BYTES = 8
_PICKLES = (b"\x80", b"PK\x03\x04", b"(", b"c")
"""How files begin that ``torch.save`` and ``pickle`` write."""


def check_header(content: bytes | memoryview, source: Path) -> None:
    """Refuse what is no safetensors file, whatever its name says.

    Args:
        content: the whole file.
        source: its path, for messages.

    Raises:
        ModelRefused: ``weights-pickled``, ``weights-header`` or ``weights-unreadable``.
    """
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    start = bytes(content[_LENGTH_BYTES : _LENGTH_BYTES + 1])
    if start != b"{":
        if any(bytes(content[: len(mark)]) == mark for mark in _PICKLES):
            text = f"{source} is a pickled file, which could run code when it is read; it was not read."
            raise ModelRefused("weights-pickled", text, "Use weights in safetensors, or `model import-published`.")
        raise ModelRefused("weights-unreadable", f"{source} is no safetensors file: it has no header.")
    largest = min(MAX_HEADER_BYTES, len(content) - _LENGTH_BYTES)
    if length > largest:
        text = f"{source} claims a header of {length} bytes; at most {largest} are possible."
        raise ModelRefused("weights-header", text, "Copy or install the bundle again from where it came from.")
    try:
        header = json.loads(bytes(content[_LENGTH_BYTES : _LENGTH_BYTES + length]))
    except (ValueError, RecursionError) as error:
        raise ModelRefused("weights-unreadable", f"{source} is no safetensors file: {error}.") from error
    if not isinstance(header, dict):
        raise ModelRefused("weights-unreadable", f"{source} is no safetensors file: its header names no tensors.")
