"""Which room imports what: the pure rooms without ROS and torch, the model without ROS, and nothing the nodes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flashvla_ros"

ROS = ("rclpy", "cv_bridge", "std_msgs", "sensor_msgs", "geometry_msgs", "rcl_interfaces", "flashvla_ros.msg")
HEAVY = ("torch", "transformers", "cv2", "mujoco", "metaworld", "rosbags", "matplotlib", "ray", "flashvla_ros.nodes")
FORBIDDEN = {
    "core": (*ROS, *HEAVY),
    "gate": (*ROS, *HEAVY),
    "control": (*ROS, *HEAVY),
    "vla": (*ROS, "transformers", "torchvision", "timm", "flashvla_ros.nodes"),
    "remote": (*ROS, *HEAVY),
    "sim": (*ROS, "torch", "flashvla_ros.nodes"),
}
# Each room, lowest first, and the rooms below it that it may use. The entry point `__main__` names modules of any room.
ALLOWED_ROOMS = {
    "core": set(),
    "cli": {"core"},
    "gate": {"core"},
    "messages": {"core"},
    "vla": {"core"},
    "control": {"core", "gate"},
    "remote": {"cli", "control", "core", "gate", "vla"},
    "sim": {"core", "control", "gate"},
    "view": {"core", "control", "gate", "messages"},
    "evaluation": {"cli", "control", "core", "gate", "sim", "view", "vla"},
    "bags": {"cli", "control", "core", "gate", "messages", "view", "vla"},
    "bench": {"bags", "cli", "control", "core", "gate", "sim", "vla"},
    "doctor": {"bags", "bench", "cli", "control", "core", "gate", "messages", "msg", "remote", "sim", "vla"},
    "nodes": {"cli", "control", "core", "gate", "messages", "msg", "remote", "sim", "view", "vla"},
    "guard": {"cli", "control", "core", "messages", "nodes"},
    "bringup": {"bags", "cli", "core", "gate", "guard", "msg", "nodes", "sim", "vla"},
}

_OURS = re.compile(r"(flashvla_ros|benchmarks|training)(\.\w+)*\.?")
_IMPORT_ALL = """
import importlib, pkgutil, sys
room, *blocked = sys.argv[1:]
for name in blocked:
    sys.modules[name] = None  # an import of it raises ModuleNotFoundError
package = importlib.import_module(f"flashvla_ros.{room}")
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    print(importlib.import_module(module.name).__name__)
"""


def import_all(room: str, blocked: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _IMPORT_ALL, room, *blocked]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_room_imports_with_everything_foreign_to_it_blocked(room: str) -> None:
    if room == "remote":
        pytest.importorskip("websockets", reason="the extra `remote` is not installed")
    result = import_all(room, FORBIDDEN[room])
    assert result.returncode == 0, result.stderr
    modules = [path for path in (PACKAGE / room).rglob("*.py") if path.name != "__init__.py"]
    assert len(result.stdout.split()) >= len(modules) > 0


@pytest.mark.parametrize(("module", "foreign"), [("rules", (*ROS, *HEAVY)), ("node", ("torch", "transformers", "cv2"))])
def test_the_guard_needs_no_model_and_its_rules_no_ros(module: str, foreign: tuple[str, ...]) -> None:
    code = (
        "import importlib, sys; sys.modules.update(dict.fromkeys(sys.argv[2:])); importlib.import_module(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, f"flashvla_ros.guard.{module}", *foreign]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_check_finds_a_forbidden_import() -> None:
    result = import_all("nodes", ("rclpy",))
    assert result.returncode != 0
    assert "rclpy" in result.stderr


def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None where the name is of something else, such as a class."""
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imports(path: Path) -> Iterator[str]:
    """Every absolute module name that a file imports anywhere, also inside functions, or names for -m or importlib."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _OURS.fullmatch(node.value):
            name = node.value.rstrip(".")  # an f-string may name the package alone: f"flashvla_ros.nodes.{which}"
            yield from [name] if file_of(name) else []


def sources(*folders: str) -> list[Path]:
    generated = PACKAGE / "msg"
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py") if generated not in path.parents)


def test_every_name_that_is_imported_from_this_repository_exists() -> None:
    """Imports inside functions too, which run only when somebody gives the command."""
    names: dict[Path, set[str]] = {}
    wrong = []
    for path in sources("flashvla_ros", "benchmarks", "training", "launch", "scripts"):
        for name in imports(path):
            module, _, last = name.rpartition(".")
            if not name.startswith(("flashvla_ros.", "benchmarks.", "training.")) or ".msg" in name or file_of(name):
                continue
            file = file_of(module)
            if file is None or last not in names.setdefault(file, set(defined(file))):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert not wrong


def defined(path: Path) -> Iterator[str]:
    """Every name that a file binds, imports or stores anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)


def test_every_room_stands_in_the_table() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} - {"msg"}
    assert rooms == set(ALLOWED_ROOMS)


def test_no_room_uses_one_above_it() -> None:
    floors = list(ALLOWED_ROOMS)
    for floor, room in enumerate(floors):
        assert ALLOWED_ROOMS[room] - {"msg"} <= set(floors[:floor])


def rooms_imported_by(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("flashvla_ros.")}


@pytest.mark.parametrize("room", sorted(ALLOWED_ROOMS))
def test_room_depends_only_on_rooms_below_it(room: str) -> None:
    files = sources(f"flashvla_ros/{room}")
    assert files
    for path in files:
        above = rooms_imported_by(path) - ALLOWED_ROOMS[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {sorted(above)}"


def test_class_names_are_unique() -> None:
    """A name means one thing, wherever a reader meets it."""
    places: dict[str, list[str]] = {}
    for path in sources("flashvla_ros"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert places
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_circle_of_files() -> None:
    """Imports count wherever they stand: in functions, and under TYPE_CHECKING."""
    assert not circles(graph(PACKAGE))


def test_the_check_finds_a_circle(tmp_path: Path) -> None:
    package = tmp_path / PACKAGE.name
    (package / "room").mkdir(parents=True)
    (package / "a.py").write_text("if TYPE_CHECKING:\n    from flashvla_ros.room.b import B\n")
    (package / "room" / "b.py").write_text("def f():\n    from flashvla_ros import c\n")
    (package / "c.py").write_text("import flashvla_ros.a\n")
    (package / "d.py").write_text("import flashvla_ros.a\n")
    assert circles(graph(package)) == [{"flashvla_ros.a", "flashvla_ros.room.b", "flashvla_ros.c"}]


def graph(package: Path) -> dict[str, set[str]]:
    """Each module of a package, and the modules of it that it imports."""
    modules = {}
    for path in package.rglob("*.py"):
        if path.name != "__init__.py" and package / "msg" not in path.parents:
            modules[".".join(path.relative_to(package.parent).with_suffix("").parts)] = path
    found = {}
    for module, path in modules.items():
        names = {name for full in imports(path) for name in (full, full.rpartition(".")[0])}
        found[module] = (names & modules.keys()) - {module}
    return found


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    above = {module: reached(module) for module in graph}
    groups = {frozenset(other for other in above[module] if module in above[other]) for module in graph}
    return [set(group) for group in groups if group]


def test_only_entry_points_and_bringup_import_the_nodes() -> None:
    nodes = PACKAGE / "nodes"
    allowed = {nodes, PACKAGE / "bringup"}
    entry = PACKAGE / "guard" / "node.py"  # a process of its own
    others = [path for path in sources("flashvla_ros") if not allowed & set(path.parents) and path != entry]
    assert others
    for path in others:
        assert "nodes" not in rooms_imported_by(path), path.relative_to(ROOT)


def test_a_name_in_a_string_counts_as_an_import(tmp_path: Path) -> None:
    file = tmp_path / "starts.py"
    file.write_text('f("-m", "flashvla_ros.bags.tune"), f"flashvla_ros.nodes.{x}", "flashvla_ros.none", "the training"')
    assert sorted(imports(file)) == ["flashvla_ros.bags.tune", "flashvla_ros.nodes"]


def test_what_is_installed_uses_nothing_that_is_not() -> None:
    for path in sources("flashvla_ros", "launch"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & {"benchmarks", "training", "test"}, path.relative_to(ROOT)


def test_nothing_imports_torchvision_or_timm() -> None:
    for path in sources("flashvla_ros", "launch"):
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & {"torchvision", "timm"}, path.relative_to(ROOT)
