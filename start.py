"""One command from a fresh checkout to a result; needs nothing but Python 3.11 or newer and a network connection.

    python start.py demo          make the environment .venv, analyse a synthetic study, say where its picture lies
    python start.py test          make the environment .venv, run every check and every test
    python start.py run ARGS...   make the environment .venv, run `mtmed3d ARGS...`

The environment is made once, and made up to date when pyproject.toml or constraints.txt change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "mtmed3d-installed.txt"
OLDEST = (3, 11)


def main(arguments: list) -> int:
    """Do what the first argument says; returns the exit code."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command not in ("demo", "test", "run"):
        print(__doc__.strip())
        return 0 if command in ("-h", "--help") else 2
    if sys.version_info < OLDEST:
        return start_with_newer_python(arguments)
    make_environment(extras="cluster,dev,dicom,slicer,train" if command == "test" else "dicom")
    if command == "test":
        return run_tests(rest)
    tool = ["-m", "MTMed3DCore", *(rest if command == "run" else ["demo", *rest])]
    return call(*tool)


def start_with_newer_python(arguments: list) -> int:
    """Run this script again with a Python that is new enough, or say that there is none."""
    for minor in (13, 12, 11):
        newer = shutil.which(f"python3.{minor}")
        if newer:
            return subprocess.call([newer, str(ROOT / "start.py"), *arguments])
    found = ".".join(map(str, sys.version_info[:2]))
    print(f"error: MTMed3D needs Python 3.11 or newer; this is {found}, no newer one is on the PATH.", file=sys.stderr)
    return 2


def python() -> str:
    """The environment's interpreter."""
    return str(ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def call(*arguments: str, environment: dict | None = None) -> int:
    """Run the environment's interpreter; returns its exit code."""
    return subprocess.call([python(), *arguments], env={**os.environ, **(environment or {})})


def make_environment(extras: str) -> None:
    """Make .venv and install the package into it, unless that was done with these very requirements."""
    requirements = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    content = b"".join(path.read_bytes() for path in requirements)
    digest = hashlib.sha256(content).hexdigest()
    done = STAMP.read_text().split() if STAMP.is_file() else []
    kept = {extra for names in done[1:] for extra in names.split(",")} if done[:1] == [digest] else set()
    wanted = set(filter(None, extras.split(",")))
    if done[:1] == [digest] and wanted <= kept and Path(python()).is_file():
        return
    if not done or not Path(python()).is_file():
        create_environment()
    constraints = str(ROOT / "constraints.txt")
    # torch goes first and pinned: with a range, the resolver may fetch several builds of it, each of gigabytes.
    pinned = next(line for line in Path(constraints).read_text().splitlines() if line.startswith("torch=="))
    install(pinned, "-c", constraints)
    install("-c", constraints, "-e", f".[{extras}]" if extras else ".")
    STAMP.write_text(" ".join([digest, *sorted(kept | wanted)]) + "\n")


def create_environment() -> None:
    """Make an empty .venv with pip, also where the system's Python lacks ensurepip but has pip."""
    print(f"Making the environment {ENVIRONMENT}", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], capture_output=True, text=True)
    if made.returncode == 0:
        return
    bare = subprocess.call([sys.executable, "-m", "venv", "--without-pip", "--clear", str(ENVIRONMENT)])
    if bare == 0 and subprocess.call([sys.executable, "-m", "pip", "--python", python(), "install", "-q", "pip"]) == 0:
        return
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    print(made.stdout + made.stderr, file=sys.stderr)
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    sys.exit(
        "error: this Python cannot make a virtual environment. On Debian and Ubuntu install what it lacks with\n"
        f"    sudo apt install {package}\nand run this command again."
    )


def install(*arguments: str) -> None:
    """Install with pip; ends the script with a reason where that fails."""
    print(f"Installing {arguments[-1 if '-e' in arguments else 0]}", flush=True)
    command = [python(), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    if subprocess.call(command, cwd=ROOT):
        sys.exit("error: pip could not install what is needed; its message is above. The next run starts there again.")


def run_tests(arguments: list) -> int:
    """Run ruff, mypy and pytest, all three whatever the first finds; returns the first exit code that is not 0."""
    os.chdir(ROOT)
    codes = [call("-m", "ruff", "check", "."), call("-m", "mypy")]
    # One thread a worker: the workers together use every core, and more threads than cores slow each other down.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1"}
    workers = str(min(8, os.cpu_count() or 1))
    codes.append(call("-m", "pytest", "-n", workers, *arguments, environment=threads))
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
