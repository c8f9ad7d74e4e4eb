"""Try in another process what may end the process that tries it, or hang: a middleware, a graphics driver."""

from __future__ import annotations

import os
import subprocess
import sys

PATIENCE_S = 120.0  # seconds where the machine is idle


def attempt(code: str, **environment: str) -> tuple[bool, str]:
    """Run Python code with these environment variables; returns whether it succeeded, and its output or last error."""
    try:
        trial = subprocess.run(  # noqa: S603  # our own interpreter and code
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {PATIENCE_S:g} s"
    if trial.returncode == 0:
        return True, trial.stdout.strip()
    lines = [line for line in trial.stderr.splitlines() if line.strip()]
    return False, lines[-1].strip() if lines else f"exit code {trial.returncode}"
