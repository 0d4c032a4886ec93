"""What keeps the house livable: functions that fit a screen, files and signatures that are read."""

import ast
import inspect
from pathlib import Path

import pytest

import vaebench
from vaebench.fast.build import make_engine

ROOT = Path(__file__).parents[1]
FUNCTION, FILE = 60, 400
ROOMS = ("vaebench", "benchmarks", "scripts", "tests")
# A kernel is one function to its compiler.
KERNELS = ROOT / "vaebench" / "fast" / "kernels"
SOURCES = (".py", ".cpp", ".h", ".js", ".css", ".html")


@pytest.mark.parametrize("room", ROOMS)
def test_functions_fit_a_screen(room: str) -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {length} lines"
        for path in (ROOT / room).rglob("*.py")
        if KERNELS not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION
    ]
    assert not long


@pytest.mark.parametrize("room", ROOMS)
def test_files_are_read_in_one_go(room: str) -> None:
    files = [path for path in (ROOT / room).rglob("*") if path.suffix in SOURCES]
    assert files
    lines = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in files}
    assert not {name: n for name, n in lines.items() if n > FILE}


def test_settings_travel_as_objects() -> None:
    assert len(inspect.signature(vaebench.fit).parameters) <= 16
    assert len(inspect.signature(make_engine).parameters) <= 4
