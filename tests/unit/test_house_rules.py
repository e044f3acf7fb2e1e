"""What CONTRIBUTING.md promises and no linter checks: sizes, no globals, a sentence on every test."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("router", "backends", "batching", "metrics", "config", "benchmarks")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def each_test() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield path.relative_to(ROOT), node


def test_modules_are_small() -> None:
    """No module is longer than 400 lines."""
    sizes = {str(path): len((ROOT / path).read_text().splitlines()) for path, _ in modules()}
    assert {path: n for path, n in sizes.items() if n > MAX_MODULE_LINES} == {}


def test_functions_are_small() -> None:
    """No function is longer than 70 lines."""
    long = [
        f"{path}:{node.lineno} {node.name} ({node.end_lineno - node.lineno + 1})"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_nothing_is_global() -> None:
    """No `global` statement anywhere."""
    found = [
        f"{path}:{node.lineno}" for path, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.Global)
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    """Each module begins with a docstring."""
    assert [str(path) for path, tree in modules() if not ast.get_docstring(tree)] == []


def test_every_test_names_its_rule() -> None:
    """Each test has a docstring."""
    assert [f"{path}:{node.lineno} {node.name}" for path, node in each_test() if not ast.get_docstring(node)] == []


def test_nothing_is_skipped() -> None:
    """A skip hides a missing part: a test runs, or fails saying what to do."""
    words = ("pytest.skip", "mark.skip", "importorskip", "mark.xfail")
    found = [
        f"{path}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path.name != "test_house_rules.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if any(word in line for word in words)
    ]
    assert found == []
