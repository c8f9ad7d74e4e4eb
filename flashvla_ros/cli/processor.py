"""What the CPU is, for the tables that say what they were measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the CPU's name where the system tells it, else its architecture."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_features() -> frozenset[str]:
    """Return the CPU's instruction sets by Linux's names, such as ``amx_bf16``; empty where they are not told."""
    return frozenset(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
