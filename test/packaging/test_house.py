"""The house stays small: no module that nothing reaches, no long parameter lists, no large files, a budget of lines."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_import_boundaries import PACKAGE, ROOT, file_of, imports, sources

from flashvla_ros.__main__ import COMMANDS

# Whoever raises it says in the commit what the lines buy; whoever deletes lowers it.
MOST_LINES = 28_767
MOST_LINES_OF_A_FILE = 320
LONG_FILES = {
    "core/settings.py": 630,  # the table of every parameter, one place to read them all
}
MOST_PARAMETERS = 6

# What starts from outside: the commands, the two nodes, the launch files, the port, and the helper for users' tests.
ENTRIES = [
    "flashvla_ros.__main__",
    *(command.module for command in COMMANDS),
    "flashvla_ros.core.policy",
    "flashvla_ros.bags.testing",
]
STARTED = [ROOT / "scripts" / "policy_node", ROOT / "scripts" / "robot_node", *(ROOT / "launch").glob("*.py")]


def files_named_by(path: Path) -> Iterator[Path]:
    """The package's files that a file imports, or names in a string: for ``-m`` or for importlib."""
    for name in imports(path):
        for module in (name, name.rpartition(".")[0]):
            if module.startswith("flashvla_ros") and (file := file_of(module)):
                yield file


def reached(entries: list[Path]) -> set[Path]:
    found: set[Path] = set()
    waiting = list(entries)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += files_named_by(path)
    return found


def test_every_module_is_reached_from_a_command_a_node_a_launch_file_or_the_port() -> None:
    entries = [file for module in ENTRIES if (file := file_of(module))]
    assert len(entries) == len(ENTRIES)
    everything = {path for path in sources("flashvla_ros") if path.name != "__init__.py"}
    idle = sorted(str(path.relative_to(ROOT)) for path in everything - reached([*entries, *STARTED]))
    assert not idle, f"nothing reaches {idle}: delete them, or move them to benchmarks/ or training/"


def test_the_walk_follows_imports_and_names_to_the_end(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text('def f():\n    import flashvla_ros.control.worker\n\n\nstart("-m", "flashvla_ros.core.flops")\n')
    found = {path.relative_to(PACKAGE).as_posix() for path in reached([program]) - {program}}
    assert found >= {"control/worker.py", "control/stepper.py", "gate/decision.py", "core/flops.py", "core/types.py"}
    assert {path.partition("/")[0] for path in found} == {"control", "gate", "core"}


def parameters_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller may give by position."""
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def functions() -> Iterator[tuple[str, int]]:
    for path in sources("flashvla_ros", "launch"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", parameters_of(node)


def test_a_function_has_at_most_six_parameters_by_position() -> None:
    counts = dict(functions())
    assert len(counts) > 500
    assert not [name for name, count in counts.items() if count > MOST_PARAMETERS]


@pytest.mark.parametrize(
    ("code", "count"), [("def f(self, a, b, *, c, d): ...", 2), ("def f(a, /, b): ...", 2), ("def f(): ...", 0)]
)
def test_parameters_are_counted_without_self_and_without_keywords(code: str, count: int) -> None:
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert parameters_of(function) == count


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_a_file_is_short_enough_to_be_read_at_once() -> None:
    for path in sources("flashvla_ros"):
        name = path.relative_to(PACKAGE).as_posix()
        assert lines_of(path) <= LONG_FILES.get(name, MOST_LINES_OF_A_FILE), name


def test_no_file_is_called_long_that_is_short_now() -> None:
    assert all(lines_of(PACKAGE / name) > MOST_LINES_OF_A_FILE for name in LONG_FILES)


def test_the_package_stays_within_its_budget_of_lines() -> None:
    assert sum(map(lines_of, sources("flashvla_ros"))) <= MOST_LINES


def test_no_two_test_files_have_one_name() -> None:
    """Test folders are no packages: of two files with one name pytest imports the first and refuses the second."""
    names = [path.name for path in (ROOT / "test").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
