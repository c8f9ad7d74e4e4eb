"""On what a measurement ran, in words that a table can carry."""

from __future__ import annotations

import os
import platform
import resource

import numpy as np
import torch
import transformers

import flashvla_ros
from flashvla_ros.bench.usage import Usage
from flashvla_ros.cli.processor import processor_name
from flashvla_ros.vla.backend import Backend


def describe(backend: Backend) -> dict[str, object]:
    """Return device, type, attention, engine, threads, and how busy the machine was."""
    cuda = backend.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(backend.device) if cuda else processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": str(backend.dtype).removeprefix("torch."),
        "attention": backend.attention,
        "engine": backend.engine,
    }


def versions() -> dict[str, str]:
    """Return the versions of all that decides how fast a step is."""
    found = {
        "flashvla_ros": flashvla_ros.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    return found | ({"cuda": torch.version.cuda} if torch.version.cuda else {})


def allocated_bytes(backend: Backend) -> int:
    """Return the memory that this process holds now: on the GPU where there is one, else of the process."""
    if backend.device.type == "cuda":
        return torch.cuda.memory_allocated(backend.device)
    return 1024 * Usage.of(os.getpid()).anonymous_kib


def peak_bytes(backend: Backend) -> int:
    """Return the most memory that this process has held."""
    if backend.device.type == "cuda":
        return torch.cuda.max_memory_allocated(backend.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
