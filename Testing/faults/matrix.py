"""Every fault of the matrix: what is done to a run of `mtmed3d analyze`, and what may come of it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from Testing.faults.runs import Ended, Run, Site, Step, run_again, run_cli

MIB = 2**20
Act = Callable[[Site], Ended]


@dataclass(frozen=True)
class Fault:
    """One row.

    Args:
        name: in words.
        act: does it; the site is fresh.
        code: of the refusal that must come; empty where the run succeeds or is killed.
        before: a complete result lies in the output folder, which the run replaces.
        needs_root: it mounts a small disk.
        either: the refusal need not come: the fault lies at the margin of what a run bears.
        given_up: nobody waits for the result any more, so that ending without one is right.
    """

    name: str
    act: Act
    code: str = ""
    before: bool = False
    needs_root: bool = False
    either: bool = False
    given_up: bool = False


@dataclass(frozen=True)
class Row:
    """What came of a fault.

    Args:
        ended: how the run ended.
        results: in the output folder, see `Site.results`.
        left: temporary names right after the run.
        after: how a second run into the same place ended.
        results_after: in the output folder after that.
        left_after: temporary names after that.
    """

    ended: Ended
    results: str
    left: list[str]
    after: Ended
    results_after: str
    left_after: list[str]

    def wrong(self, fault: Fault) -> list[str]:
        """What must not be, in words."""
        found = [self.results] if "HALF" in self.results else []
        if fault.before and self.results == "none":
            found.append("the earlier result is lost")
        if self.ended.status > 0:
            if self.ended.code != fault.code:
                found.append(f"the code is {self.ended.code!r} and not {fault.code!r}: {self.ended.log[-300:]}")
            elif not self.ended.remedy and self.ended.code != "cancelled":
                found.append("there is no remedy")
        elif fault.code and not fault.either:
            found.append(f"it was to be refused as {fault.code}")
        if self.ended.status == 0 and self.results != "complete" and not fault.given_up:
            found.append(f"it said that it succeeded; results: {self.results}")
        if "Traceback" in self.ended.log:
            found.append(f"there is a traceback: {self.ended.log[-300:]}")
        if self.left and self.ended.status >= 0:
            found.append(f"{', '.join(self.left)} is left")
        if self.after.status or self.results_after != "complete" or self.left_after:
            found.append(f"the next run: {self.after}, {self.results_after}, left {self.left_after} {self.after.log}")
        return found


def meet(fault: Fault, site: Site) -> Row:
    """Let a fault happen at a fresh site, and run once more after it."""
    if fault.before:
        assert run_again(site).status == 0
    ended = fault.act(site)
    results, left = site.results(), site.left()
    _mend(site)
    after = run_again(site, "--overwrite")
    return Row(ended, results, left, after, site.results(), site.left())


def _mend(site: Site) -> None:
    """The user's part before the second run: free the disk, allow writing, bring back the study."""
    results = str(site.out.parent)
    if os.path.ismount(results):
        subprocess.run(["mount", "-o", "remount,rw,size=64m", results], check=True)
        (site.out.parent / "filler").unlink(missing_ok=True)
    elsewhere = site.root / "elsewhere"
    if elsewhere.exists():
        shutil.copytree(elsewhere, site.study, dirs_exist_ok=True)


def _at(wanted: Callable[[Step], bool], do: Callable[[Site, Run], object], *more: str) -> Act:
    """Do something at the first such step, and let the run go on to its end."""

    def act(site: Site) -> Ended:
        run = run_cli(site, *more)
        assert run.until(wanted) is not None, run.end()
        do(site, run)
        return run.end()

    return act


def _stage(stage: str) -> Callable[[Step], bool]:
    return lambda step: step[0] == stage


def _text(text: str) -> Callable[[Step], bool]:
    return lambda step: step[1].startswith(text)


def _nth_rename(number: int) -> Callable[[Step], bool]:
    seen = iter(range(number))
    return lambda step: step[0] == "rename" and next(seen, None) is None


def _send(number: signal.Signals) -> Callable[[Site, Run], None]:
    return lambda site, run: run.signal(number)


def _signals() -> list[Fault]:
    places = {f"as the stage {stage} begins": _stage(stage) for stage in ("read", "prepare", "infer", "write")}
    places |= {f"at '{text}'": _text(text) for text in ("Drawing the preview", "Writing the report")}
    found = [Fault(f"SIGKILL {place}", _at(step, _send(signal.SIGKILL))) for place, step in places.items()]
    for number in (signal.SIGTERM, signal.SIGINT):
        found += [Fault(f"{number.name} {place}", _at(step, _send(number)), "cancelled")
                  for place, step in places.items() if "preview" not in place]  # fmt: skip
    return found


def _renames() -> list[Fault]:
    """While an earlier result is replaced: the moves out come first, then the moves in."""
    places = {"first file": 0, "15th file": 14, "30th file": 29}

    def act(number: int) -> Act:
        return lambda site: _at(_nth_rename(number), _send(signal.SIGKILL), "--overwrite")(site)

    return [Fault(f"SIGKILL as a result is replaced, before the {place} moves", act(number), before=True)
            for place, number in places.items()]  # fmt: skip


def mount(site: Site, size: str) -> None:
    """A small disk for the results."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(site.out.parent)], check=True)


def _full_disk(kib: int) -> Fault:
    def act(site: Site) -> Ended:
        mount(site, f"{kib}k")
        return run_cli(site, gated=False).end()

    return Fault(f"output on a disk of {kib} KiB", act, "disk-full", needs_root=True)


def _full_while_replacing(site: Site) -> Ended:
    mount(site, "1500k")
    assert run_again(site).status == 0
    (site.out.parent / "filler").write_bytes(bytes(500 * 1024))
    return run_cli(site, "--overwrite", gated=False).end()


def _file_limit(site: Site) -> Ended:
    limit = (50 * 1024, 50 * 1024)
    return run_cli(site, gated=False, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)).end()


def _read_only(site: Site) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(site.out.parent)], check=True)


def _read_only_from_the_start(site: Site) -> Ended:
    mount(site, "64m")
    _read_only(site)
    return run_cli(site, gated=False).end()


def _read_only_in_the_middle(site: Site) -> Ended:
    mount(site, "64m")
    return _at(_stage("infer"), lambda site, run: _read_only(site))(site)


def _keep_study(site: Site) -> None:
    shutil.copytree(site.study, site.root / "elsewhere")


def _lose(what: str) -> Callable[[Site, Run], None]:
    def do(site: Site, run: Run) -> None:
        _keep_study(site)
        (site.study / what).unlink() if what else shutil.rmtree(site.study)

    return do


def _lose_results(site: Site, run: Run) -> None:
    shutil.rmtree(site.out.parent)


def _limited(mib: int) -> Fault:
    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + mib * MIB,) * 2)

    def act(site: Site) -> Ended:
        return run_cli(site, gated=False, prepare=limit).end()

    code = "out-of-memory" if mib < 64 else ""
    return Fault(f"address space: {mib} MiB beyond the loaded libraries", act, code, either=mib == 16)


def _two_at_once(site: Site) -> Ended:
    first = run_cli(site)
    first.until(_text("Drawing the preview"))
    second = run_cli(site, gated=False).end()
    assert first.end().status == 0
    return second


def _two_replacing(site: Site) -> Ended:
    first = run_cli(site, "--overwrite")
    first.until(_nth_rename(20))
    second = run_cli(site, "--overwrite", gated=False).end()
    assert first.end().status == 0
    return second


def _full_pipe(site: Site) -> Ended:
    read, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    try:
        return run_cli(site, gated=False, stderr=write).end()
    finally:
        os.close(read)
        os.close(write)


def _broken(**names: str) -> Act:
    """A stream whose reader has gone."""

    def act(site: Site) -> Ended:
        read, write = os.pipe()
        os.close(read)
        try:
            return run_cli(site, gated=False, **dict.fromkeys(names, write)).end()
        finally:
            os.close(write)

    return act


def _stopped_and_continued(site: Site) -> Ended:
    def pause(site: Site, run: Run) -> None:
        run.signal(signal.SIGSTOP)
        os.waitpid(run.pid, os.WUNTRACED)
        run.signal(signal.SIGCONT)

    return _at(_stage("infer"), pause)(site)


FAULTS: tuple[Fault, ...] = (
    *_signals(),
    *_renames(),
    *(_full_disk(kib) for kib in (4, 16, 64, 256, 400)),
    Fault("the disk fills up while a result is replaced", _full_while_replacing, "disk-full", needs_root=True),
    Fault("no file may grow beyond 50 KiB", _file_limit, "output-not-writable"),
    Fault("read-only output from the start", _read_only_from_the_start, "output-not-writable", needs_root=True),
    Fault("output turns read-only during the analysis", _read_only_in_the_middle, "output-not-writable",
          needs_root=True),
    Fault("FLAIR vanishes between listing and reading", _at(_stage("read"), _lose("flair.nii.gz")), "file-missing"),
    Fault("the study's folder vanishes between listing and reading", _at(_stage("read"), _lose("")), "file-missing"),
    Fault("the study's folder vanishes once it is read", _at(_stage("infer"), _lose(""))),
    Fault("the output's parent folder vanishes during the analysis", _at(_stage("infer"), _lose_results)),
    *(_limited(mib) for mib in (4, 16, 64, 256, 1024)),
    Fault("another run writes into the same new folder", _two_at_once, "output-busy"),
    Fault("another run replaces the same result", _two_replacing, "output-busy", before=True),
    Fault("standard error is a full pipe that nobody reads", _full_pipe),
    Fault("standard error is a pipe whose reader has gone", _broken(stderr="")),
    Fault("standard output is a pipe whose reader has gone", _broken(stdout="")),
    Fault("standard error is closed", lambda site: run_cli(site, gated=False, stderr=-1).end()),
    Fault("stopped in the middle, and continued", _stopped_and_continued),
)  # fmt: skip
