"""Whatever is missing on a machine is a finding of its own, with what to do about it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch

from flashvla_ros.core.settings import ModelSettings, Settings
from flashvla_ros.doctor import machine, ros, trial
from flashvla_ros.doctor.finding import Finding, Level

CPU = ModelSettings(device="cpu", attention="sdpa")


def found(name: str, settings: ModelSettings = CPU) -> Finding:
    return next(finding for finding in machine.check_machine(settings) if finding.name == name)


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As if a package were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of the graphics driver takes seconds; the tests of it ask for it."""
    monkeypatch.setattr(machine, "attempt", lambda *_, **__: (True, ""))


def test_torch_that_is_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.1.0+cpu")
    assert (found("torch").level, found("torch").remedy) == (Level.FAILURE, "pip install --upgrade 'torch>=2.11'")


def test_what_the_model_needs_and_is_not_there(monkeypatch):
    hide(monkeypatch, "torch")
    findings = list(machine.check_machine(CPU))
    assert [finding.name for finding in findings] == ["Python", "torch", "EGL"]  # the rest would need it
    assert findings[1].level is Level.FAILURE
    assert findings[1].remedy.startswith("pip install 'torch>=2.11' 'transformers>=5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("driver", "level", "text", "remedy"),
    [
        (False, Level.WARNING, "none", "small models run on the CPU"),
        (True, Level.FAILURE, "there is one, but torch", "install the torch build that fits the driver"),
    ],
)
def test_a_gpu_that_is_not_there_or_not_seen(monkeypatch, driver, level, text, remedy):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: driver if "nvidia" in str(path) else exists(path))
    finding = found("GPU")
    assert finding.level is level
    assert finding.text.startswith(text)
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize(("flags", "level"), [("avx2 avx512f", Level.WARNING), ("avx512_bf16 amx_bf16", Level.OK)])
def test_bfloat16_on_a_cpu_that_has_no_instructions_for_it(monkeypatch, flags, level):
    monkeypatch.setattr(machine, "cpuinfo", lambda key: flags if key == "flags" else "")
    finding = found("attention", ModelSettings(device="cpu", attention="sdpa", dtype="bfloat16"))
    assert (finding.level, finding.remedy) == (level, "set model.dtype to float32" if level is Level.WARNING else "")


def test_an_attention_backend_that_this_machine_lacks():
    finding = found("attention", ModelSettings(device="cpu", attention="flash_attention_2"))
    assert finding.level is Level.FAILURE
    assert "model.attention" in finding.text
    assert "sdpa" in finding.text  # what to set instead


def test_rendering_that_fails(monkeypatch):
    monkeypatch.setattr(machine, "attempt", trial.attempt)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setattr(machine, "_EGL_TRIAL", "raise ImportError('cannot find libEGL')")
    finding = found("EGL")
    assert finding.level is Level.FAILURE
    assert finding.text == "MuJoCo cannot draw (MUJOCO_GL=egl): ImportError: cannot find libEGL"
    assert finding.remedy.startswith("apt-get install libegl1")
    hide(monkeypatch, "mujoco")
    assert (found("EGL").level, "pip install metaworld==" in found("EGL").remedy) == (Level.WARNING, True)


def test_a_driver_that_hangs_or_crashes_does_not_take_the_doctor_with_it(monkeypatch):
    monkeypatch.setattr(trial, "PATIENCE_S", 0.5)
    assert trial.attempt("import time; time.sleep(60)") == (False, "no answer within 0.5 s")
    monkeypatch.setattr(trial, "PATIENCE_S", 60.0)
    assert trial.attempt("import os; os.kill(os.getpid(), 11)") == (False, "exit code -11")
    assert trial.attempt("import os; print(os.environ['WORD'])", WORD="x") == (True, "x")


def test_ros_that_is_not_there(monkeypatch):
    hide(monkeypatch, "rclpy")
    [finding] = ros.check_ros(Settings(), 0.1)
    assert (finding.name, finding.level) == ("ROS 2", Level.FAILURE)
    assert finding.remedy.startswith("source /opt/ros/<distribution>/setup.bash")


@pytest.mark.parametrize(
    ("name", "level", "words"),
    [("kilted", Level.OK, ""), ("humble", Level.WARNING, "the package is tested with jazzy, kilted and newer")],
)
def test_the_distribution_is_named(monkeypatch, name, level, words):
    monkeypatch.setenv("ROS_DISTRO", name)
    finding = ros._distribution()
    assert (finding.level, finding.text, finding.remedy) == (level, name, words)


def test_wheels_are_named_and_an_installation_that_is_not_sourced_is_told(monkeypatch):
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    version = {"ros-rclpy": "9.1.2"}
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version[package])
    assert ros._distribution() == Finding("ROS 2", Level.OK, "wheels: rclpy 9.1.2")

    def absent(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert (ros._distribution().level, ros._distribution().remedy) == (Level.WARNING, ros._INSTALL)


def test_messages_that_are_not_built(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashvla_ros.msg", types.ModuleType("flashvla_ros.msg"))
    finding = ros._messages()
    assert finding.level is Level.FAILURE
    assert finding.remedy.startswith("make setup, or colcon build")


def test_a_remedy_has_a_line_of_its_own():
    lines = str(Finding("GPU", Level.WARNING, "none", "buy one")).split("\n")
    assert [line.strip() for line in lines] == ["warn  GPU           none", "→ buy one"]
    assert str(Finding("RMW", Level.OK, "fastrtps")) == "ok    RMW           fastrtps"
