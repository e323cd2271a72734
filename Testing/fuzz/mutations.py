"""Random changes to the bytes of a valid file, and the smallest change that still does the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f")
WORDS = (b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"99999999999999999999", b"\\ud800", b"\n", b"..")
LARGEST_SPAN = 64


def mutate(content: bytes, random: np.random.Generator, head: int) -> bytes:
    """One to four changes, three quarters of them in the first `head` bytes, where headers stand."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        if not data:
            break
        reach = min(head, len(data)) if random.random() < 0.75 else len(data)
        at, span = int(random.integers(reach)), int(random.integers(1, LARGEST_SPAN))
        match int(random.integers(7)):
            case 0:
                data[at] ^= 1 << int(random.integers(8))
            case 1:
                data[at] = int(random.integers(256))
            case 2:
                part = INTERESTING[int(random.integers(len(INTERESTING)))]
                data[at : at + len(part)] = part
            case 3:
                part = WORDS[int(random.integers(len(WORDS)))]
                data[at : at + int(random.integers(0, 8))] = part
            case 4:
                del data[at : at + span]
            case 5:
                data[at:at] = data[at : at + span]
            case _:
                del data[at : None if random.random() < 0.2 else at + 1]
    return bytes(data)


def minimise(original: bytes, crashing: bytes, still: Callable[[bytes], bool], tries: int = 400) -> bytes:
    """Take back whatever part of a mutation is not needed for the crash.

    Args:
        original: the valid file.
        crashing: what crashed.
        still: whether a content gives the same crash.
        tries: how many contents may be tried.
    """
    best = crashing
    if len(best) == len(original):
        wrong = [i for i, (a, b) in enumerate(zip(best, original, strict=True)) if a != b]
        for index in wrong[:tries]:
            attempt = best[:index] + original[index : index + 1] + best[index + 1 :]
            best = attempt if still(attempt) else best
        return best
    size = max(len(best) // 2, 1)
    while size and tries > 0:
        start = 0
        while start < len(best) and tries > 0:
            attempt = best[:start] + best[start + size :]
            tries -= 1
            if still(attempt):
                best = attempt
            else:
                start += size
        size //= 2
    return best
