"""The machine: Python, memory, torch and its GPU, attention, rendering without a screen."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from flashvla_ros.cli.results import cpuinfo
from flashvla_ros.core import extras
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.doctor.finding import Finding, Level, ok
from flashvla_ros.doctor.trial import attempt

_LEAST_TORCH = (2, 11)
_EGL_TRIAL = "import mujoco; context = mujoco.GLContext(16, 16); context.make_current(); context.free()"


def check_machine(settings: ModelSettings) -> Iterator[Finding]:
    """Look at all of it."""
    yield ok("Python", f"{platform.python_version()} at {sys.executable}")
    yield from _torch(settings)
    yield _rendering()


def available_memory() -> int:
    """Return the bytes of host memory that can be had without swapping, 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024


def _torch(settings: ModelSettings) -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", Level.FAILURE, f"cannot be imported: {error}", extras.remedy("model"))
        return
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _LEAST_TORCH:
        yield Finding("torch", Level.FAILURE, torch.__version__, "pip install --upgrade 'torch>=2.11'")
    else:
        yield ok("torch", torch.__version__)
    yield _gpu()
    yield _backend(settings)


def _gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return ok("GPU", f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if not Path("/proc/driver/nvidia/version").exists():
        return Finding("GPU", Level.WARNING, "none", "small models run on the CPU; a 7B model wants a GPU of 24 GB")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Finding(
        "GPU",
        Level.FAILURE,
        f"there is one, but torch {torch.__version__} ({built}) does not see it",
        "install the torch build that fits the driver (nvidia-smi shows its CUDA version)",
    )


def _backend(settings: ModelSettings) -> Finding:
    import torch

    from flashvla_ros.vla.backend import Backend

    try:
        backend = Backend.resolve(settings)
    except FlashVLAError as error:
        return Finding.failure_of("attention", error)
    text = f"{backend.attention} in {str(backend.dtype).removeprefix('torch.')} on {backend.device}"
    if backend.device.type == "cuda" and importlib.util.find_spec("flash_attn") is None:
        return Finding("attention", Level.WARNING, text, "pip install flash-attn, which is faster with long prompts")
    narrow = backend.device.type == "cpu" and backend.dtype is torch.bfloat16
    if narrow and "bf16" not in cpuinfo("flags") + cpuinfo("Features"):  # x86, ARM
        return Finding("attention", Level.WARNING, f"{text}, without instructions for it", "set model.dtype to float32")
    return ok("attention", text)


def _rendering() -> Finding:
    """The simulated robot draws its camera with EGL; a fault of the driver may kill the process, so try in another."""
    if importlib.util.find_spec("mujoco") is None:
        install = f"{extras.remedy('sim')} for the simulated robot; a real one does not need it"
        return Finding("EGL", Level.WARNING, "not tried, MuJoCo is not installed", install)
    name = os.environ.get("MUJOCO_GL") or "egl"
    works, text = attempt(_EGL_TRIAL, MUJOCO_GL=name)
    if works:
        return ok("EGL" if name == "egl" else "rendering", f"MuJoCo draws without a screen (MUJOCO_GL={name})")
    remedy = "apt-get install libegl1 libgl1-mesa-dri, and leave MUJOCO_GL unset or set it to egl"
    return Finding("EGL", Level.FAILURE, f"MuJoCo cannot draw (MUJOCO_GL={name}): {text}", remedy)
