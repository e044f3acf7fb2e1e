"""The distribution: plain package names that meet nobody else's, and a lock file that pins everything."""

import ast
import re
import runpy
import sys
import tomllib
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = {"router", "backends", "batching", "metrics", "config"}


def test_package_names_meet_nobody_elses() -> None:
    """No installed distribution and no standard module shares a top-level name with us (docs/decisions/0001)."""
    others = {name for name, dists in packages_distributions().items() if set(dists) != {"penstock"}}
    assert set() == OURS & others
    assert set() == OURS & sys.stdlib_module_names


def test_the_command_is_installed() -> None:
    """`pip install .` gives the command `penstock`."""
    commands = [ep.value for ep in entry_points(group="console_scripts") if ep.name == "penstock"]
    assert commands == ["router.cli:main"]


def test_locks_pin_with_hashes_and_name_no_index() -> None:
    """Each requirement is exact and hashed, and neither file names an index host."""
    for lock in ("requirements.lock", "requirements-dev.lock", "requirements-container.lock"):
        text = (ROOT / lock).read_text()
        assert "://" not in text
        requirements = re.findall(r"^[A-Za-z0-9][^\n]*", text, re.MULTILINE)
        assert requirements
        assert [r for r in requirements if "==" not in r] == []
        assert len(re.findall(r"--hash=sha256:", text)) >= len(requirements)


def test_every_direct_dependency_says_why() -> None:
    """Each line of `dependencies` ends in a comment."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    lines = [line.strip() for line in block.splitlines() if line.strip()]
    assert [line for line in lines if "#" not in line] == []


def test_what_is_not_python_is_packed() -> None:
    """Each data file of the packages matches a pattern of package-data, or is there for who has the repository."""
    only_here = {"metrics/dashboards/kustomization.yaml", "metrics/rules/kustomization.yaml"}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {
        path.relative_to(ROOT)
        for package, globs in patterns.items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    data = {
        path.relative_to(ROOT)
        for package in OURS
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert {str(path) for path in data - packed} == only_here
    assert len([path for path in packed if path.parts[:2] == ("metrics", "dashboards")]) == 5


def test_no_interpreted_class_inherits_from_a_compiled_one() -> None:
    """The compiled build refuses it when the first such object is made, perhaps by an option that few switch on."""
    compiled = set(runpy.run_path(str(ROOT / "setup.py"))["modules"]())
    assert "router/openai/journal.py" in compiled
    found = []
    for folder in OURS:
        for file in (ROOT / folder).rglob("*.py"):
            if (path := str(file.relative_to(ROOT))) in compiled:
                continue
            tree = ast.parse(file.read_text())
            from_compiled = {
                alias.asname or alias.name
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and f"{(node.module or '').replace('.', '/')}.py" in compiled
                for alias in node.names
            }
            classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            bases = {(node.name, base.id) for node in classes for base in node.bases if isinstance(base, ast.Name)}
            found += [f"{path}: {name} inherits from {base}" for name, base in bases if base in from_compiled]
    assert found == []


def test_no_compiled_coroutine_waits_while_it_handles_an_exception() -> None:
    """After an `await` in a `finally` mypyc raises again whatever the thread handles, perhaps what a caller's caller has caught."""
    found = []
    for path in runpy.run_path(str(ROOT / "setup.py"))["modules"]():
        for function in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(function, ast.AsyncFunctionDef):
                continue
            tries = [node for node in ast.walk(function) if isinstance(node, ast.Try)]
            handling = [
                step for one in tries for step in (*one.finalbody, *(step for h in one.handlers for step in h.body))
            ]
            waits = [
                node
                for step in handling
                for node in ast.walk(step)
                if isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor)
            ]
            found += [f"{path}:{node.lineno}: {function.name}" for node in waits]
    assert found == []


def test_nobody_asks_what_caused_an_exception() -> None:
    """Compiled code leaves out the `from` of a `raise`: what somebody has to know of an error is an attribute of it."""
    asked = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for folder in OURS
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in {"__cause__", "__context__"}
    ]
    assert asked == []


def test_a_name_in_a_compiled_function_holds_one_kind_of_exception() -> None:
    """In a coroutine mypyc keeps the kind that it saw first: `except A as e: ... except B as e:` raises TypeError where B is caught."""
    found = []
    for path in runpy.run_path(str(ROOT / "setup.py"))["modules"]():
        for function in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                held: dict[str, set[str]] = {}
                for node in ast.walk(function):
                    if isinstance(node, ast.ExceptHandler) and node.name and node.type:
                        held.setdefault(node.name, set()).add(ast.unparse(node.type))
                found += [f"{path}: {function.name}: {name}" for name, kinds in held.items() if len(kinds) > 1]
    assert found == []


def test_no_compiled_module_has_a_final_tuple_of_floats() -> None:
    """Mypyc compiles a look at one into an error, `value for final name was not set`; without Final it is looked up by name."""
    found = []
    for path in runpy.run_path(str(ROOT / "setup.py"))["modules"]():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation):
                values = node.value.elts if isinstance(node.value, ast.Tuple) else []
                if values and all(isinstance(one, ast.Constant) and isinstance(one.value, float) for one in values):
                    found.append(f"{path}:{node.lineno}")
    assert found == []
