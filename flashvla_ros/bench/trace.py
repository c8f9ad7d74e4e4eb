"""A recorded trace of decisions: what the gate said at every control step of some episodes, as CSV.

Columns: mode, task, seed, step, decision (infer or reuse), reason, agreeing. The last one is the number of leading
action tokens that a fresh action shares with the fresh action before it, empty where there is none: exactly what a
draft of that action would have had accepted with ``decode.accept_bins`` 0.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from flashvla_ros.core.errors import FlashVLAError

INFER, REUSE = "infer", "reuse"
DATA = Path(__file__).parent / "data"
DEFAULT_TRACE = DATA / "trace.csv"


@dataclasses.dataclass(frozen=True)
class TraceStep:
    """One control step.

    Attributes:
        mode: Of the gate: ``guarded`` or ``paper``.
        task: What the robot was doing.
        seed: Of the episode's scene.
        step: From 0 in each episode.
        decision: ``infer`` or ``reuse``.
        reason: The gate's reason.
        agreeing: See the module; None where nothing came before, and on a reused step.
    """

    mode: str
    task: str
    seed: int
    step: int
    decision: str
    reason: str
    agreeing: int | None

    @property
    def fresh(self) -> bool:
        """Whether the model was run."""
        return self.decision == INFER


_COLUMNS = tuple(field.name for field in dataclasses.fields(TraceStep))


def read_trace(path: Path, action_size: int) -> list[TraceStep]:
    """Read a trace.

    Args:
        path: CSV as :func:`write_trace` makes it.
        action_size: Dimensions of the measured model's action; agreement is scaled to it by share.

    Raises:
        FlashVLAError: The file is no such trace; names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in ("mode", "decision", "agreeing") if name not in (reader.fieldnames or ())]:
                raise FlashVLAError(
                    f"{path} is no trace of decisions: it has no column {', '.join(missing)}; record one with "
                    f"python -m flashvla_ros.bench.record_trace"
                )
            steps = [_step(path, number, row) for number, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FlashVLAError(f"cannot read the trace {path}: {getattr(error, 'strerror', None) or error}") from error
    if not any(step.fresh for step in steps):
        raise FlashVLAError(f"{path} has no step with decision {INFER}: there is nothing to time")
    longest = max((step.agreeing or 0 for step in steps), default=0)
    if longest > action_size:
        raise FlashVLAError(f"{path} has {longest} agreeing tokens, but this model's action has {action_size}")
    return steps


def _step(path: Path, number: int, row: dict[str, str]) -> TraceStep:
    where = f"{path}, line {number}"
    decision = row["decision"]
    if decision not in (INFER, REUSE):
        raise FlashVLAError(f"{where}: decision must be {INFER} or {REUSE}, got {decision!r}")
    return TraceStep(
        mode=row["mode"],
        task=row.get("task") or "",
        seed=_number(where, "seed", row.get("seed")) or 0,
        step=_number(where, "step", row.get("step")) or 0,
        decision=decision,
        reason=row.get("reason") or "",
        agreeing=_number(where, "agreeing", row["agreeing"]),
    )


def _number(where: str, name: str, text: str | None) -> int | None:
    if not text:
        return None
    if not text.isdecimal():
        raise FlashVLAError(f"{where}: {name} must be a whole number or empty, got {text!r}")
    return int(text)


def write_trace(path: Path, steps: Iterable[TraceStep]) -> None:
    """Write what :func:`read_trace` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for step in steps:
            writer.writerow("" if value is None else value for value in dataclasses.astuple(step))


def relative(path: Path) -> str:
    """Return a path for a result file: below the package or the working folder where it is there."""
    for root in (Path(__file__).parents[2], Path.cwd()):
        if path.resolve().is_relative_to(root):
            return os.fspath(path.resolve().relative_to(root))
    return path.name
