"""A room imports only from rooms to its left, the command line starts light, and no other models/ gets in the way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# room -> the rooms that it may import from, besides itself
LEFT = {
    "scenarios": {"hw"},  # looks names up in hw's catalogues
    "hw": set(),
    "models": {"scenarios", "hw"},
    "sim": {"scenarios", "hw", "models"},
    "pricing": {"scenarios", "hw", "models", "sim"},
    "dashboards": {"scenarios", "hw", "models", "sim", "pricing"},
}
CATALOGUES = {"hw", "hw.device", "hw.transformer"}
OPTIONAL = {"streamlit", "altair", "torch", "cupy", "pynvml", "dask", "distributed", "genai_prices"}
FILES = sorted(path for room in LEFT for path in (ROOT / room).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module that code imports, wherever it stands, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def wrong_direction(room: str, source: str) -> list[str]:
    """The imports of a file that point to the right, or at the command line or the tests."""
    found = []
    for name, line in imported(ast.parse(source)):
        root = name.partition(".")[0]
        known = root in LEFT or root in {"treeline", "tests"}
        if known and root != room and root not in LEFT[room]:
            found.append(f"line {line}: {room} imports {name}")
    return found


def at_module_level(source: str) -> set[str]:
    """Modules that a file imports when it is imported itself, TYPE_CHECKING left out."""
    found = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found |= {name for name, _ in imported(node) if not isinstance(node, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_from_rooms_to_its_left(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert wrong_direction(room, path.read_text(encoding="utf-8")) == []


def test_the_rule_sees_an_import_to_the_right_wherever_it_stands() -> None:
    assert wrong_direction("models", "def f():\n    from sim.run import run\n")
    assert wrong_direction("sim", "import treeline")
    assert wrong_direction("hw", "import scenarios.units")
    assert not wrong_direction("pricing", "import numpy\nfrom sim.records import Result\n")


def test_scenarios_take_nothing_but_catalogues_from_hw() -> None:
    for path in (ROOT / "scenarios").rglob("*.py"):
        names = {name for name, _ in imported(ast.parse(path.read_text(encoding="utf-8")))}
        modules = {".".join(n.split(".")[:2]) for n in names if n.partition(".")[0] == "hw"}
        assert modules <= CATALOGUES, path


def test_the_command_line_imports_nothing_heavy_until_a_command_needs_it() -> None:
    source = (ROOT / "treeline.py").read_text(encoding="utf-8")
    light = {name.partition(".")[0] for name in at_module_level(source)}
    assert light - {"typer"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_optional_packages_are_never_imported_at_module_level(path: Path) -> None:
    relative = path.relative_to(ROOT)
    if relative.parts[0] == "dashboards" and {
        "app.py",
        "views",
        "charts",
        "page.py",
        "promised.py",
    } & set(relative.parts):
        pytest.skip("the page is started only where its extra is installed")
    names = at_module_level(path.read_text(encoding="utf-8"))
    assert not {name for name in names if name.partition(".")[0] in OPTIONAL}


def test_help_loads_neither_numpy_nor_pydantic_nor_rich() -> None:
    code = (
        "import sys, runpy; sys.argv = ['treeline', 'run', '--help']\n"
        "try:\n    runpy.run_path(sys.orig_argv[-1], run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'pydantic', 'rich', 'yaml', 'scipy'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "treeline.py")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "[]"


def hostile(folder: Path) -> Path:
    """A working directory with other packages by our rooms' names, which end any program that imports them."""
    for room in LEFT:
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text(f"raise SystemExit('another {room}')\n")
    return folder


def test_the_command_line_starts_where_another_models_folder_lies(tmp_path: Path) -> None:
    started = subprocess.run(
        [sys.executable, str(ROOT / "treeline.py"), "check", "quickstart.yaml"],
        cwd=hostile(tmp_path),
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (started.returncode, started.stderr) == (0, "")
    assert "quickstart.yaml: fine" in started.stdout


@pytest.mark.skipif(not (ROOT / "dashboards/app.py").exists(), reason="there is no page yet")
def test_the_page_starts_where_another_models_folder_lies(tmp_path: Path) -> None:
    pytest.importorskip("streamlit")
    code = (
        "from streamlit.testing.v1 import AppTest\n"
        f"page = AppTest.from_file({str(ROOT / 'dashboards/app.py')!r}, default_timeout=60).run()\n"
        "assert not page.exception, page.exception\n"
    )
    started = subprocess.run(
        [sys.executable, "-c", code],
        cwd=hostile(tmp_path),
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr
