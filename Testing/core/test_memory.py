"""What the system tells of memory, by files as Linux has them."""

from __future__ import annotations

from math import inf

import pytest

from MTMed3DCore import memory
from MTMed3DCore.memory import available_memory

MIB = 2**20
TOLD = {
    "meminfo": "MemTotal: 4096 kB\nMemFree: 100 kB\nMemAvailable: 1024 kB\n",
    "self/cgroup": "5:devices:/job\n4:cpu,memory:/job/step\n0::/slice/job\n",
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes what Linux tells of memory, by path; of the machine little is free and 1 MiB available."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")

    def write(folder="cgroup", **files):
        for name, text in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    write("proc", **TOLD)
    return write


@pytest.mark.usefixtures("machine")
def test_memory_that_holds_files_only_until_it_is_wanted_is_available():
    assert available_memory() == MIB


def test_a_group_of_processes_may_have_less_than_the_machine_and_no_more_than_those_it_is_in(machine):
    inner = {"memory.max": "max\n", "memory.current": "7\n", "memory.stat": "active_file 1\n"}
    machine("cgroup/slice/job", **inner)
    assert available_memory() == MIB
    outer = {"memory.max": "900000\n", "memory.current": "500000\n"}
    machine("cgroup/slice", **outer, **{"memory.stat": "anon 1\nactive_file 10000\ninactive_file 90000\n"})
    assert available_memory() == 900000 - 500000 + 100000


def test_a_container_with_the_first_version_of_groups_sees_its_own_in_place_of_the_outermost(machine):
    limits = {"memory.limit_in_bytes": "700000\n", "memory.usage_in_bytes": "300000\n"}
    machine("cgroup/memory", **limits, **{"memory.stat": "total_active_file 0\ntotal_inactive_file 50000\n"})
    assert available_memory() == 700000 - 300000 + 50000


@pytest.mark.parametrize("told", ["", "MemAvailable:", "MemAvailable: much\n"])
def test_a_machine_that_does_not_tell_what_is_available_is_asked_for_what_is_free(told, machine, monkeypatch):
    machine("proc", **{"meminfo": told, "self/cgroup": "nonsense\n"})
    pages = {"SC_AVPHYS_PAGES": 5, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(memory.os, "sysconf", pages.__getitem__, raising=False)
    assert available_memory() == 5 * 4096

    def unknown(name):
        raise ValueError(name)

    monkeypatch.setattr(memory.os, "sysconf", unknown, raising=False)
    assert available_memory() == inf
