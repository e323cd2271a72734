"""``python -m MTMed3DCore.worker``; see the package's documentation for the protocol."""

from __future__ import annotations

import faulthandler
import os
import sys

from MTMed3DCore.worker.protocol import Channel, private_stdout
from MTMed3DCore.worker.session import Session, ready_event


def main() -> None:
    """Answer lines until standard input closes."""
    channel = Channel(private_stdout())
    faulthandler.enable()  # a crash in native code leaves its place in the log
    session = Session(channel)
    channel.send(ready_event())
    for raw in sys.stdin.buffer:
        line = raw.decode("utf-8", errors="replace").strip()
        if line and not session.answer(line):
            break
    session.close()
    sys.stderr.flush()
    os._exit(0)  # threads inside torch or ITK must not keep the process


if __name__ == "__main__":
    main()
