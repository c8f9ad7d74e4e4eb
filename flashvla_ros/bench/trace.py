"""A recorded trace of decisions: what the gate said at every control step of some episodes, as CSV.

Columns: mode, task, seed, step, decision (infer or reuse), reason, agreeing, tokens. Of the `tokens` tokens of a fresh
action, `agreeing` leading ones are those of the fresh action before it, empty where there is none: exactly what a draft
of that action would have had accepted with ``decode.accept_bins`` 0.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from pathlib import Path

import cv2
import numpy as np

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import read_text
from flashvla_ros.core.types import Observation

INFER, REUSE = "infer", "reuse"
DATA = Path(__file__).parent / "data"
DEFAULT_TRACE = DATA / "trace.csv"
_DT_S = 0.1  # between two frames


@dataclasses.dataclass(frozen=True)
class TraceStep:
    """One control step; for `agreeing` and `tokens` see the module."""

    mode: str  # of the gate: guarded or paper
    fresh: bool  # the model was run
    agreeing: int | None  # None where nothing came before, and on a reused step
    tokens: int


_NEEDED = ("mode", "decision", "agreeing", "tokens")


def read_trace(path: Path) -> list[TraceStep]:
    """Read a CSV as ``python -m benchmarks.trace`` makes it; its other columns are for people.

    Raises:
        FlashVLAError: The file is no such trace; names the line.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    try:
        if missing := [name for name in _NEEDED if name not in (reader.fieldnames or ())]:
            raise FlashVLAError(
                f"{path} is no trace of decisions: it has no column {', '.join(missing)}; record one with "
                f"python -m benchmarks.trace"
            )
        steps = [_step(path, number, row) for number, row in enumerate(reader, start=2)]
    except csv.Error as error:
        raise FlashVLAError(f"cannot read the trace {path}: {error}") from error
    if not any(step.fresh for step in steps):
        raise FlashVLAError(f"{path} has no step with decision {INFER}: there is nothing to time")
    return steps


def _step(path: Path, number: int, row: dict[str, str]) -> TraceStep:
    where = f"{path}, line {number}"
    decision = row["decision"]
    if decision not in (INFER, REUSE):
        raise FlashVLAError(f"{where}: decision must be {INFER} or {REUSE}, got {decision!r}")
    agreeing, tokens = _number(where, "agreeing", row["agreeing"]), _number(where, "tokens", row["tokens"]) or 0
    if agreeing is not None and (agreeing > tokens or not tokens):
        raise FlashVLAError(f"{where}: {agreeing} agreeing tokens of {tokens} cannot be")
    return TraceStep(row["mode"], decision == INFER, agreeing, tokens)


def _number(where: str, name: str, text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise FlashVLAError(f"{where}: {name} must be a whole number or empty, got {text!r}")
    return int(text)


def relative(path: Path) -> str:
    """Return a path for a result file: below the package or the working folder where it is there."""
    for root in (Path(__file__).parents[2], Path.cwd()):
        if path.resolve().is_relative_to(root):
            return os.fspath(path.resolve().relative_to(root))
    return path.name


def load_observations(instruction: str, folder: Path = DATA) -> list[Observation]:
    """Return the frames of `folder` in their order, 0.1 s apart.

    Raises:
        FlashVLAError: There are none.
    """
    files = sorted(folder.glob("frame_*.jpg"))
    images = [image for path in files if (image := cv2.imread(str(path))) is not None]
    if not images or len(images) < len(files):
        raise FlashVLAError(f"{folder} has no readable frame_*.jpg; install flashvla_ros again")
    return [
        Observation(
            {"image": cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)},
            instruction,
            stamp_s=index * _DT_S,
        )
        for index, image in enumerate(images, start=1)
    ]
