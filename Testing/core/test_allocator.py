"""When the C library gives memory back, seen from the system's side, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do with memory")
RESIDENT = """
import pathlib
def resident(): return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
"""


def printed_by(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", RESIDENT + code], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_stays_with_the_process_once_asked_for():
    kept = printed_by("""
import torch
from MTMed3DCore.allocator import keep_freed_memory
torch.ones(2**26); given_back = resident()
assert keep_freed_memory()
torch.ones(2**26); print(resident() - given_back)
""")
    assert kept > 0.9 * 2**28


def test_freed_memory_stays_with_the_process_also_where_a_thread_computes():
    kept = printed_by("""
import threading
from MTMed3DCore.allocator import keep_freed_memory, share_one_heap
assert share_one_heap()
import torch
assert keep_freed_memory()
before = resident()
thread = threading.Thread(target=torch.ones, args=(2**26,)); thread.start(); thread.join()
print(resident() - before)
""")
    assert kept > 0.9 * 2**28


def test_pages_between_blocks_that_live_on_are_given_back_between_requests():
    """Of 2000 blocks of 100 kB every tenth lives on: without asking, the free ones between them stay resident."""
    code = """
from MTMed3DCore.allocator import give_back_freed_memory
before = resident()
blocks = [bytearray(100_000) for _ in range(2000)]
kept = blocks[::10]
del blocks
{ask}
print(resident() - before)
"""
    assert printed_by(code.format(ask="")) > 100e6
    assert printed_by(code.format(ask="assert give_back_freed_memory()")) < 40e6
