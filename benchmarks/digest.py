"""A name for all that finished work depends on: what a ledger holds serves only a run with the same one."""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from typing import Any

from flashvla_ros.evaluation.ledger import code_digest


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the code that an episode runs, and of more.

    Args:
        parts: A path stands for its file or for the modules below its folder, a function or class for its source, and
            anything else for itself, as JSON writes it.
    """
    found = hashlib.sha256(code_digest().encode())
    for part in parts:
        if isinstance(part, Path):
            files = sorted(part.rglob("*.py")) if part.is_dir() else [part]
            content = b"".join(file.read_bytes() for file in files)
        else:
            text = inspect.getsource(part) if callable(part) else json.dumps(part, sort_keys=True)
            content = text.encode()
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()[:16]
