"""The two ways to install: both put messages, executables, launch and configuration files where ROS finds them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of a checkout's files, what a robot needs: not its tests, measurements, training, documents, nor the plain policy.
SHARED = ("config", "launch", "models/demo")
SITE_PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"

USE_MESSAGES = """
import sys
import rclpy
from ament_index_python.packages import get_package_share_directory
from flashvla_ros.core.paths import share_path
from flashvla_ros.msg import GateStatus

context = rclpy.Context()
rclpy.init(context=context)
node = rclpy.create_node("trial", context=context)
got = []
subscription = node.create_subscription(GateStatus, "gate", got.append, 1)
publisher = node.create_publisher(GateStatus, "gate", 1)
while not got:
    publisher.publish(GateStatus(delta=0.25, kept_tokens=[3, 5]))
    rclpy.spin_once(node, timeout_sec=0.1, executor=rclpy.executors.SingleThreadedExecutor(context=context))
assert (got[0].delta, list(got[0].kept_tokens)) == (0.25, [3, 5])
print(sys.modules["flashvla_ros"].__file__, share_path("config"), get_package_share_directory("flashvla_ros"))
"""


def clone(target: Path) -> Path:
    """Copy what a fresh clone holds: no compiled messages, no build folders."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith("test/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for both builds by colcon: compiling takes a minute, installing a second."""
    return clone(tmp_path_factory.mktemp("workspace") / "flashvla_ros")


def run(command: list[str], cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout


def check_prefix(prefix: Path, cwd: Path) -> None:
    """Use an installation as a sourced overlay would, from a folder that is no checkout."""
    share = prefix / "share" / "flashvla_ros"
    assert (prefix / "share" / "ament_index" / "resource_index" / "packages" / "flashvla_ros").is_file()
    assert (share / "package.xml").is_file()
    check_contents(prefix)
    for name in ("policy_node", "robot_node"):
        assert os.access(prefix / "lib" / "flashvla_ros" / name, os.X_OK)
    libraries = f"{prefix}/lib{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"
    overlay = f"{prefix}{os.pathsep}{os.environ.get('AMENT_PREFIX_PATH', sys.prefix)}"
    python = str(prefix / SITE_PACKAGES)
    places = run(
        [sys.executable, "-c", USE_MESSAGES],
        cwd,
        PYTHONPATH=python,
        LD_LIBRARY_PATH=libraries,
        AMENT_PREFIX_PATH=overlay,
    ).split()
    assert places == [f"{python}/flashvla_ros/__init__.py", f"{share}/config", str(share)]


def check_contents(prefix: Path) -> None:
    """Everything of ours that is needed is installed, and no more: no benchmark, no training, no plain policy."""
    share, package = prefix / "share" / "flashvla_ros", prefix / SITE_PACKAGES / "flashvla_ros"
    shared = {path for path in files_of(share) if path.parts[0] in ("config", "launch", "models")}
    assert shared == {path for folder in SHARED for path in files_of(ROOT, folder)}
    assert files_of(package) == files_of(ROOT / "flashvla_ros")
    folders = {path.name for path in prefix.rglob("*") if path.is_dir()}
    assert not folders & {"benchmarks", "training", "test", "docs", "demo-plain", "demo-oft"}


def files_of(root: Path, folder: str = "") -> set[Path]:
    """Files below a folder, relative to `root`, without what Python and the build of the messages make there."""
    found = {path.relative_to(root) for path in (root / folder).rglob("*") if path.is_file()}
    made = {path for path in found if {"__pycache__", "msg"} & set(path.parts) or path.suffix in (".so", ".c")}
    return found - made


@pytest.mark.timeout(900)
def test_pip_install(tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-build-isolation", "--no-deps"]
    run([*pip, "--ignore-installed", "--prefix", str(prefix), "."], clone(tmp_path / "flashvla_ros"))
    check_prefix(prefix, tmp_path)
    assert "bringup" in run([str(prefix / "bin" / "flashvla-ros"), "--help"], tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [[], ["--symlink-install"]], ids=["copied", "symlinked"])
def test_colcon_build(tmp_path: Path, workspace: Path, options: list[str]) -> None:
    prefixes = os.environ.get("AMENT_PREFIX_PATH", sys.prefix)
    cmake = ["--cmake-args", f"-DPython3_EXECUTABLE={sys.executable}", "-DBUILD_TESTING=OFF"]
    environment = {
        "AMENT_PREFIX_PATH": prefixes,
        "CMAKE_PREFIX_PATH": prefixes,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for folder in ("install", "build/flashvla_ros/ament_cmake_python"):  # what is a folder here is a link there
        shutil.rmtree(workspace / folder, ignore_errors=True)
    run(["colcon", "build", *options, *cmake], workspace, **environment)
    check_prefix(workspace / "install" / "flashvla_ros", tmp_path)
