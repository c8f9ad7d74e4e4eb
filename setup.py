"""Build step of ``pip install``: compiles the messages with the same CMakeLists.txt that colcon uses.

setup.cfg has the metadata. Everything outside the Python package (shared libraries, launch, config, models, ament
index) is what CMake installs into a staging prefix, so pip and colcon lay out the same files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
PACKAGE = "flashvla_ros"
GENERATORS = "share/rosidl_default_generators"


def ros_prefixes() -> list[Path]:
    """Return the ament prefixes to build against: a sourced ROS 2 installation, else where the wheels are."""
    sourced = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    if any((prefix / GENERATORS).is_dir() for prefix in sourced):
        return sourced
    site_packages = [Path(entry).resolve() for entry in sys.path if entry.endswith("-packages")]
    return [entry.parents[2] for entry in site_packages if (entry.parents[2] / GENERATORS).is_dir()]


def build_requirements() -> list[str]:
    """Return the wheels that an isolated build needs: none beside a ROS 2 installation."""
    if ros_prefixes():
        return []
    lines = (ROOT / "requirements" / "ros.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class BuildMessages(Command):
    """Compile the messages and stage what CMake installs."""

    description = "compile the ROS messages"
    user_options: ClassVar[list[tuple[str, str, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        """Declare what finalize_options sets."""
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        """Build where the build command builds."""
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("build_temp", "build_temp"))

    def run(self) -> None:
        """Run CMake, move the generated Python modules into the package, and hand the rest over as data files."""
        stage = Path(self.build_temp).resolve() / "ament"
        _cmake(stage)
        (generated,) = stage.glob(f"lib/python*/*-packages/{PACKAGE}")
        package = ROOT / PACKAGE if self.editable_mode else Path(self.build_lib) / PACKAGE
        shutil.rmtree(package / "msg", ignore_errors=True)
        shutil.copytree(generated / "msg", package / "msg", ignore=shutil.ignore_patterns("*.c", "__pycache__"))
        for library in generated.glob("*.so"):
            shutil.copy2(library, package)
        shutil.rmtree(generated.parents[1])  # setuptools installs the Python package,
        shutil.rmtree(stage / "bin")  # and the command
        self.distribution.data_files = [
            (str(folder.relative_to(stage)), [str(path) for path in sorted(folder.iterdir()) if path.is_file()])
            for folder in sorted(path for path in stage.rglob("*") if path.is_dir())
        ]
        if self.editable_mode:  # setuptools leaves data files out of editable wheels
            self.run_command("install_data")

    def get_source_files(self) -> list[str]:
        """Name what a source distribution needs for this step."""
        folders = ("config", "launch", "models", "msg", "requirements", "scripts")
        files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
        return ["CMakeLists.txt", "package.xml", *(str(path.relative_to(ROOT)) for path in files)]


def _cmake(stage: Path) -> None:
    """Configure, build and install CMakeLists.txt into a new `stage`."""
    prefixes = [str(prefix) for prefix in ros_prefixes()]
    if not prefixes:
        raise SystemExit("flashvla_ros: no message generators found; source ROS 2 or install requirements/ros.txt")
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        raise SystemExit("flashvla_ros: cmake is missing; install it with pip or the system's package manager")
    build_dir = stage.with_name("cmake")
    for folder in (stage, build_dir):  # a cache would point into the environment of an earlier isolated build
        shutil.rmtree(folder, ignore_errors=True)
    libraries = [f"{prefix}/lib" for prefix in prefixes]
    environment = {
        **os.environ,
        "AMENT_PREFIX_PATH": os.pathsep.join(prefixes),
        "CMAKE_PREFIX_PATH": os.pathsep.join(prefixes),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]),
    }
    configure = [cmake, "-S", ROOT, "-B", build_dir, f"-DCMAKE_INSTALL_PREFIX={stage}", "-DBUILD_TESTING=OFF"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
    compile_all = [cmake, "--build", build_dir, "--parallel", str(os.cpu_count() or 1)]
    for command in (configure, compile_all, [cmake, "--install", build_dir]):
        subprocess.run(command, env=environment, check=True)  # noqa: S603


class Build(build):
    """The usual build, then the messages."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_messages", None)]

    def run(self) -> None:
        """Begin with an empty folder: setuptools would also ship modules that have since been deleted."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BinaryDistribution(Distribution):
    """A distribution with compiled parts, so that its wheel names platform and Python version."""

    def has_ext_modules(self) -> bool:
        """Say yes."""
        return True


setup(
    distclass=BinaryDistribution,
    cmdclass={"build": Build, "build_messages": BuildMessages},
    setup_requires=build_requirements(),
)
