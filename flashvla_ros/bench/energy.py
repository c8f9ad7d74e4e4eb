"""Energy of a step, by the counter of an NVIDIA GPU.

The driver's own library is asked (NVML's ``nvmlDeviceGetTotalEnergyConsumption``), which every machine with such a GPU
has. Its counter moves every few tens of milliseconds, so a configuration runs for seconds on end.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import torch

_LIBRARY = "libnvidia-ml.so.1"
_SECONDS = 2.0

Counter = Callable[[], float]


def energy_counter(device: torch.device) -> Counter | None:
    """Return what reads the joules that a GPU has used since its driver was loaded; None where nothing counts them."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    handle, used = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)):
        return None

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used))
        return used.value / 1e3

    return read if not nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(used)) else None


def joules_a_step(run: Callable[[], object], counter: Counter, synchronize: Callable[[], None]) -> float:
    """Run a step again and again for two seconds, and return the energy of one, the device's idle power included."""
    synchronize()
    steps, before, started_s = 0, counter(), time.perf_counter()
    while time.perf_counter() - started_s < _SECONDS:
        run()
        synchronize()
        steps += 1
    return (counter() - before) / steps
