"""``python -m MTMed3DCore.worker``; see the package's documentation for the protocol."""

from __future__ import annotations

import faulthandler
import os
import sys
from contextlib import suppress

from MTMed3DCore.allocator import share_one_heap
from MTMed3DCore.errors import Cancelled
from MTMed3DCore.process import open_standard_streams, terminated_as_interrupted
from MTMed3DCore.worker.protocol import Channel, private_stdout
from MTMed3DCore.worker.session import Session, ready_event


def main() -> None:
    """Answer lines until standard input closes."""
    open_standard_streams()
    share_one_heap()
    channel = Channel(private_stdout())
    faulthandler.enable()  # a crash in native code leaves its place in the log
    session = Session(channel)
    channel.send(ready_event())
    code = 0
    try:
        with terminated_as_interrupted():
            for raw in sys.stdin.buffer:
                line = raw.decode("utf-8", errors="replace").strip()
                if line and not session.answer(line):
                    break
    except KeyboardInterrupt:
        code = Cancelled.exit_code
    session.close()
    with suppress(OSError, ValueError):  # nobody may listen there
        sys.stderr.flush()
    os._exit(code)  # threads inside torch or ITK must not keep the process


if __name__ == "__main__":
    main()
