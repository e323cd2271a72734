"""Lets every fault happen and writes the table as Markdown: ``python -m Testing.faults.table [FILE] [NAME ...]``.

With names, only the faults whose name holds one of them. The exit code is 1 where one was met wrongly. Full disks and
read-only ones are small tmpfs mounts, which take root; without it these rows say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from Testing.faults.matrix import FAULTS, Fault, Row, meet
from Testing.faults.runs import sites
from Testing.faults.workers import WORKER_FAULTS

HEADINGS = ("fault", "the run", "results", "left", "next run")


def main(arguments: list[str]) -> int:
    """Run from the command line."""
    file = Path(arguments[0]) if arguments else None
    chosen = [
        each for each in (*FAULTS, *WORKER_FAULTS) if not arguments[1:] or any(p in each.name for p in arguments[1:])
    ]
    rows, wrong = [], 0
    with sites() as make:
        for fault in chosen:
            if fault.needs_root and os.geteuid() != 0:
                rows.append((fault.name, "not run: mounts take root", "", "", ""))
                continue
            site = make()
            try:
                row = meet(fault, site)
            finally:
                if os.path.ismount(site.out.parent):
                    subprocess.run(["umount", str(site.out.parent)], check=True)
            problems = row.wrong(fault)
            wrong += bool(problems)
            rows.append(cells(fault, row, problems))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    lines = ["| " + " | ".join(row) + " |" for row in (HEADINGS, ("---",) * len(HEADINGS), *rows)]
    text = "\n".join(lines) + f"\n\n{len(rows)} faults, {wrong} met wrongly.\n"
    if file is None:
        print(text)
    else:
        file.write_text(text, encoding="utf-8")
    return int(wrong > 0)


def cells(fault: Fault, row: Row, problems: list[str]) -> tuple[str, ...]:
    """A row in words."""
    left = "hidden workplace" if row.left else "nothing"
    after = "complete, nothing left" if not row.after.status and not row.left_after else str(row.after)
    results = (
        "the earlier, complete" if fault.before and row.results == "complete" and row.ended.status else row.results
    )
    found = (fault.name, str(row.ended), results, left, after)
    return (*found[:-1], f"{after} WRONG: {'; '.join(problems)}".replace("\n", " ")) if problems else found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main(sys.argv[1:]))
