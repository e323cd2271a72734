"""What a wheel carries, what pins hold, and what the set-up script does."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


def requirements() -> list[str]:
    project = PROJECT["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"]]


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheel_carries_the_bundles_where_the_search_looks_for_them() -> None:
    from MTMed3DCore.bundles import bundle_roots

    (source, target), *others = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items()
    assert not others
    assert ROOT / source in bundle_roots()
    assert ROOT / target in bundle_roots()
    assert (ROOT / source).is_dir()


def test_the_version_is_the_one_that_the_package_states() -> None:
    from MTMed3DCore import __version__

    assert ROOT / PROJECT["tool"]["hatch"]["version"]["path"] == ROOT / "MTMed3DCore" / "__init__.py"
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"[{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("requirement", requirements())
def test_every_requirement_is_pinned_within_its_range(requirement: str) -> None:
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", requirement).groups()
    pinned = {plain(key): value for key, value in PINS.items()}[plain(name)]
    numbers = [int(part) for part in re.findall(r"\d+", pinned)]
    for bound in bounds.split(","):
        operator, limit = re.fullmatch(r"(>=|<)([\d.]+)", bound).groups()
        edge = [int(part) for part in limit.split(".")]
        assert numbers >= edge if operator == ">=" else numbers < edge, f"{name} {pinned} is not {bound}"


def test_every_runtime_dependency_of_an_installed_package_is_pinned() -> None:
    pinned = {plain(name) for name in PINS}
    for requirement in PROJECT["project"]["dependencies"]:
        name = re.match(r"[A-Za-z0-9_.-]+", requirement).group()
        for line in importlib.metadata.requires(name) or ():
            needed = plain(re.match(r"[A-Za-z0-9_.-]+", line).group())
            # Conditional ones (extras, CUDA, one platform) are not part of what was tested together.
            if ";" not in line:
                assert needed in pinned, f"{name} needs {needed}"


def test_the_console_script_names_a_function_that_exists() -> None:
    from MTMed3DCore.cli import main

    assert PROJECT["project"]["scripts"] == {"mtmed3d": f"{main.__module__}:{main.__name__}"}


@pytest.mark.parametrize("arguments", [["--help"], ["fly"]])
def test_the_set_up_script_says_how_it_is_used_and_makes_nothing(arguments: list[str], tmp_path: Path) -> None:
    script = tmp_path / "start.py"
    script.write_text((ROOT / "start.py").read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if arguments == ["--help"] else 2)
    assert "python start.py demo" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["start.py"]


def test_the_readme_and_the_checks_give_the_same_test_command() -> None:
    assert "python start.py test" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "start.py test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_no_line_ending_in_a_bundle_is_ever_changed_by_git() -> None:
    assert "Resources/bundles/** -text" in (ROOT / ".gitattributes").read_text(encoding="utf-8")


def test_the_lock_holds_every_package_in_the_version_that_the_tests_run_with_and_with_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"\n(?=[a-z])", text) if not block.startswith("#")]
    locked = {plain(block.split("==")[0]): re.split(r"[ ;]", block.split("==")[1])[0] for block in blocks}
    pinned = {plain(name): version for name, version in PINS.items()}
    assert [name for name, version in locked.items() if pinned.get(name, version) != version] == []
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in ("dicom", "train", "cluster"):
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    assert {plain(re.split(r"[<>=!~\[ ;]", each)[0]) for each in wanted} <= set(locked)
    assert [block.split()[0] for block in blocks if not re.search(r"--hash=sha256:[0-9a-f]{64}", block)] == []
