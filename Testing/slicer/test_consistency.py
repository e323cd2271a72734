"""What must agree in the extension's files; runs without Slicer."""

from __future__ import annotations

import ast
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = ROOT / "MTMed3DSlicer"
LIBRARY = MODULE / "MTMed3DLib"
UI = MODULE / "Resources" / "UI" / "MTMed3D.ui"
AT_FILE_SCOPE = {"slicer", "vtk", "qt", "ctk", "numpy", "MTMed3DLib"}
"""What may be imported at file scope beside the standard library: nothing else is sure to be there."""
ACCEPTED_CATEGORIES = {"Segmentation", "Neuroimaging", "Quantification"}
MODULE_FILES = [MODULE / "MTMed3D.py", *sorted(LIBRARY.glob("*.py"))]


def files_in(folder: Path, root: Path) -> set[str]:
    """Paths of every file of a folder, relative to `root`, without what Python and editors leave behind."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {p.relative_to(root).as_posix() for p in found if "__pycache__" not in p.parts and p.suffix != ".pyc"}


def cmake_list(file: Path, name: str) -> list[str]:
    """The entries of one ``set(NAME ...)``."""
    match = re.search(rf"set\({name}\n(.*?)\)", file.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None, f"{file} has no {name}"
    return [entry.replace("${MODULE_NAME}", "MTMed3D") for entry in match[1].split()]


def cmake_value(name: str) -> str:
    """A quoted value of the extension's CMakeLists.txt."""
    match = re.search(rf'set\({name} "(.*?)"\)', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert match is not None, f"no {name}"
    return match[1]


def imports_at_file_scope(file: Path) -> set[str]:
    """Top-level names of the modules that a file imports when it is itself imported."""

    def visit(body: list[ast.stmt]) -> set[str]:
        names: set[str] = set()
        for node in body:
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
                names |= visit(node.body) | visit(node.orelse)
            elif isinstance(node, ast.Try):
                names |= visit(node.body)
        return names

    return visit(ast.parse(file.read_text(encoding="utf-8")).body)


def names_used_of_ui() -> dict[str, set[str]]:
    """Names read from an object called ``ui``, by file."""
    return {
        file.name: set(re.findall(r"\bui\.(\w+)", file.read_text(encoding="utf-8")))
        | set(re.findall(r'"(\w+Check)"', file.read_text(encoding="utf-8")))
        for file in [*MODULE_FILES, *Path(__file__).parent.glob("test_panel*.py")]
    }


def widgets() -> dict[str, str]:
    """Class by name of every widget of the .ui file."""
    return {str(w.get("name")): str(w.get("class")) for w in ElementTree.parse(UI).getroot().iter("widget")}


def test_cmake_lists_exactly_the_scripts_and_resources_of_the_module() -> None:
    listed = cmake_list(MODULE / "CMakeLists.txt", "MODULE_PYTHON_SCRIPTS")
    assert len(listed) == len(set(listed))
    assert set(listed) == {"MTMed3D.py"} | files_in(LIBRARY, MODULE)
    resources = cmake_list(MODULE / "CMakeLists.txt", "MODULE_PYTHON_RESOURCES")
    shots = files_in(MODULE / "Resources" / "Screenshots", MODULE)  # for the catalogue; nobody needs them installed
    assert set(resources) == files_in(MODULE / "Resources", MODULE) - shots


def test_cmake_lists_exactly_the_files_of_the_core_and_its_bundle() -> None:
    core = files_in(ROOT / "MTMed3DCore", ROOT)
    scripts = {path for path in core if path.endswith(".py")}
    assert set(cmake_list(ROOT / "CMakeLists.txt", "MTMED3D_CORE_SCRIPTS")) == scripts
    bundles = files_in(ROOT / "Resources" / "bundles", ROOT)
    assert set(cmake_list(ROOT / "CMakeLists.txt", "MTMED3D_CORE_RESOURCES")) == (core - scripts) | bundles


def test_every_widget_named_in_the_code_is_in_the_ui_file() -> None:
    known = set(widgets())
    unknown = {name: sorted(used - known) for name, used in names_used_of_ui().items() if used - known}
    assert unknown == {}


def test_every_button_and_choice_of_the_ui_file_is_used_by_the_code() -> None:
    from_keys = {f"{start}{end}" for start in ("necroticCore", "oedema", "enhancing") for end in ("Visible", "Opacity")}
    used = set().union(*names_used_of_ui().values()) | from_keys
    passive = {"QLabel", "QWidget", "ctkCollapsibleButton", "qMRMLWidget"}
    assert {name for name, kind in widgets().items() if kind not in passive and name not in used} == set()


def test_every_custom_widget_class_of_the_ui_file_is_declared_and_known() -> None:
    root = ElementTree.parse(UI).getroot()
    declared = {element.findtext("class") for element in root.iter("customwidget")}
    used = {kind for kind in widgets().values() if not kind.startswith("Q")}
    assert used == declared
    assert used <= {
        "ctkCollapsibleButton",
        "ctkPathLineEdit",
        "ctkSliderWidget",
        "qMRMLNodeComboBox",
        "qMRMLSegmentEditorWidget",
        "qMRMLWidget",
    }


def test_every_widget_that_shows_nodes_is_told_of_the_scene() -> None:
    told = {c.findtext("receiver") for c in ElementTree.parse(UI).getroot().iter("connection")}
    assert told == {name for name, kind in widgets().items() if kind.startswith("qMRML") and name != "MTMed3D"}


@pytest.mark.parametrize("file", MODULE_FILES, ids=lambda path: path.name)
def test_nothing_is_imported_at_file_scope_that_may_be_missing(file: Path) -> None:
    assert imports_at_file_scope(file) <= AT_FILE_SCOPE | set(sys.stdlib_module_names)


QT_FREE = ["analysis", "brain", "dicom_series", "inputs", "memory", "packages", "sample_data", "scene", "suggestion",
           "worker_client"]  # fmt: skip


@pytest.mark.parametrize("name", QT_FREE)
def test_the_logic_knows_no_widgets(name: str) -> None:
    assert not imports_at_file_scope(LIBRARY / f"{name}.py") & {"qt", "ctk"}


def test_the_module_s_requirements_are_those_of_the_core_without_torch() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {requirement.replace(" ", "") for requirement in project["dependencies"]}
    lines = (MODULE / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.replace(" ", "") for line in lines if line and not line.startswith("#")}
    assert listed <= needed
    # PyTorch comes from its own extension, numpy with Slicer; rich, filelock and pillow are for the command line.
    elsewhere = {"torch", "numpy", "rich", "filelock", "pillow"}
    assert {re.split(r"\W", requirement)[0] for requirement in needed - listed} == elsewhere


def test_what_dicom_needs_is_a_part_of_the_core_s_extra() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {requirement.replace(" ", "") for requirement in project["optional-dependencies"]["dicom"]}
    lines = (MODULE / "Resources" / "requirements-dicom.txt").read_text(encoding="utf-8").splitlines()
    listed = {line.replace(" ", "") for line in lines if line and not line.startswith("#")}
    assert {re.split(r"\W", requirement)[0] for requirement in listed} == {"pydicom", "highdicom"}
    assert listed <= extra


def test_the_index_entry_has_the_fields_of_its_schema() -> None:
    entry = json.loads((ROOT / "MTMed3D.json").read_text(encoding="utf-8"))
    assert {"$schema", "category", "scm_url"} <= set(entry)
    optional = {"scm_revision", "scm_type", "build_dependencies", "build_subdirectory", "enabled", "tier"}
    assert set(entry) <= {"$schema", "category", "scm_url", *optional}
    assert entry["category"] in ACCEPTED_CATEGORIES
    assert entry["build_dependencies"] == cmake_value("EXTENSION_DEPENDS").split()
    assert 1 <= entry["tier"] <= 5


def test_the_extension_is_called_the_same_everywhere() -> None:
    project = re.search(r"project\((\w+)\)", (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))
    assert project is not None
    assert project[1] == "MTMed3D"
    assert (ROOT / f"{project[1]}.json").is_file()
    assert not project[1].startswith("Slicer")
    assert (ROOT / "LICENSE").is_file()


def test_icon_and_screenshots_that_the_catalogue_shows_exist() -> None:
    urls = [cmake_value("EXTENSION_ICONURL"), *cmake_value("EXTENSION_SCREENSHOTURLS").split()]
    for url in urls:
        path = ROOT / url.partition("/main/")[2]
        assert path.is_file(), url
        assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert len(urls) >= 2
