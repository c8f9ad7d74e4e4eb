"""``flashvla-ros tune --limits`` and ``--monitors``: limits of node and guard, and thresholds, from good recordings."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flashvla_ros.bags.options import Source
from flashvla_ros.bags.steps import RecordedStep
from flashvla_ros.control.monitors import SignMonitor, conformal_threshold
from flashvla_ros.control.proposal import Proposal, propose
from flashvla_ros.control.targets import command_spec, started_from
from flashvla_ros.core.errors import BagError, SettingsError
from flashvla_ros.core.files import write_text
from flashvla_ros.core.rotations import quaternion_of
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import EULER_NAMES, POSITION_NAMES, QUATERNION_NAMES, ActionKind, ActionSpec, FloatArray

_FEWEST = 10  # commands


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedRun:
    """Commands between two stops.

    Attributes:
        stamps_s: [n] of the observations that they answer.
        commands: [n, T, D] after safety, in the units of the action.
    """

    stamps_s: FloatArray
    commands: FloatArray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that ask for limits or thresholds in place of the gate's."""
    parser.add_argument("--limits", type=Path, metavar="FILE", help="propose limits of node and guard, no model is run")
    parser.add_argument("--monitors", type=Path, metavar="FILE", help="propose monitor.*; may be the same file")
    parser.add_argument("--quantile", type=float, default=1.0, help="of the commands that is to pass (%(default)g)")
    parser.add_argument("--margin", type=float, default=0.2, help="by which limits are wider (%(default)g)")
    parser.add_argument("--step-matrix", action="store_true", help="bound the step's Mahalanobis distance too")
    parser.add_argument("--alarm-rate", type=float, default=0.05, help="of runs that may be warned of (%(default)g)")


def run(args: argparse.Namespace) -> int:
    """Propose, print what the limits would have refused, write; returns the exit code.

    Raises:
        BagError: The recordings hold too few commands of the node.
        SettingsError: The recorded commands have no limits that could be read off them.
    """
    if not 0.5 < args.quantile <= 1.0 or args.margin < 0.0 or not 0.0 < args.alarm_rate < 1.0:
        raise SettingsError("--quantile is above 0.5 and at most 1, --margin at least 0, --alarm-rate between 0 and 1")
    settings, runs = read_runs(args.bags, Source.of(args))
    sections: dict[Path, dict[str, dict[str, Any]]] = {}
    node = args.node.rpartition("/")[2]
    if args.limits:
        ours, guards = (
            propose(rows, spec, args.quantile, args.margin, matrix=args.step_matrix)
            for spec, rows in (action_rows(runs, settings), command_rows(runs, settings))
        )
        written = guards.values()
        if gripper := gripper_range(settings, ours):
            written["guard"] = {**written.get("guard", {}), "gripper": gripper}
        sections[args.limits] = {node: {"limits": ours.values()["limits"]}, "guard": written}
        for name, proposal in ((node, ours), ("guard", guards)):
            share = proposal.refused / proposal.rows
            print(f"{name}: would have changed or refused {proposal.refused} of {proposal.rows} ({share:.2%})")
    if args.monitors:
        found = monitor_thresholds(runs, settings, args.alarm_rate)
        sections.setdefault(args.monitors, {}).setdefault(node, {})["monitor"] = found
        print(f"monitors: {len(runs)} runs; {', '.join(f'{name} {value:g}' for name, value in found.items())}")
    for path, nodes in sections.items():
        content = {f"/**/{name}": {"ros__parameters": groups} for name, groups in nodes.items()}
        write_text(path, yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))
        print(f"wrote {path}")
    return 0


def read_runs(bags: Sequence[Path], source: Source) -> tuple[Settings, list[RecordedRun]]:
    """Read the commands of recordings, and the settings of the first.

    Raises:
        BagError: There are too few, or they have another size than ``action.names``.
    """
    runs: list[RecordedRun] = []
    settings: Settings | None = None
    for bag in bags:
        with source.open(bag) as recording:
            settings = settings or recording.settings.first
            runs += _runs(recording.log.steps, len(settings.action.names))
    if settings is None or sum(len(run.stamps_s) for run in runs) < _FEWEST:
        raise BagError(
            f"the recordings hold fewer than {_FEWEST} commands of the node (~/gate): record it while it moves"
        )
    return settings, runs


def _runs(steps: Sequence[RecordedStep], size: int) -> Iterator[RecordedRun]:
    groups: list[list[RecordedStep]] = []
    for before, step in zip([None, *steps], steps, strict=False):
        if before is None or step.restarted(before) or step.resets > before.resets:
            groups.append([])
        groups[-1].append(step)
    for found in groups:
        chunks = [step.rows("action", size) for step in found]
        if len({len(chunk) for chunk in chunks}) == 1:
            yield RecordedRun(np.array([step.stamp_ns * 1e-9 for step in found]), np.array(chunks))


def action_rows(runs: Sequence[RecordedRun], settings: Settings) -> tuple[ActionSpec, list[FloatArray]]:
    """Return runs of rows [n, D] that follow each other, in the units of the action."""
    spec = ActionSpec.of(settings.action)
    rows: list[FloatArray] = []
    for run in runs:
        commands = run.commands.copy()
        for index in spec.angles:
            commands[:, 0, index] = np.unwrap(commands[:, 0, index])
            commands[:, :, index] = np.unwrap(commands[:, :, index], axis=1)
        rows += [commands[:, 0], *(commands if commands.shape[1] > 1 else ())]
    return spec, rows


def command_rows(runs: Sequence[RecordedRun], settings: Settings) -> tuple[ActionSpec, list[FloatArray]]:
    """Return the same in the units of the command message.

    Raises:
        SettingsError: They depend on where the robot was, which a recorded action does not say.
    """
    kind = settings.command.type
    action, rows = action_rows(runs, settings)
    if counted := started_from(kind, action):
        raise SettingsError(
            f"a command of {counted} is counted from the measured position, so that limits of the guard cannot be read "
            f"off recorded actions: give them by hand"
        )
    return command_spec(kind, action), [_as_command(run, kind, action) for run in rows]


def _as_command(rows: FloatArray, kind: str, action: ActionSpec) -> FloatArray:
    spec = command_spec(kind, action)
    found = np.zeros((len(rows), spec.size))
    for index, name in enumerate(action.names):
        if name in spec.names:
            delta = kind == "TwistStamped" and action.kinds[index] is ActionKind.DELTA
            found[:, spec.names.index(name)] = rows[:, index] / (action.dt_s if delta else 1.0)
    if kind == "PoseStamped" and not set(QUATERNION_NAMES) <= set(action.names):
        columns = [action.names.index(name) for name in EULER_NAMES]
        turns = np.array([quaternion_of(*row) for row in rows[:, columns].tolist()])
        signs = np.sign((turns[1:] * turns[:-1]).sum(axis=1))
        turns[1:] *= np.cumprod(np.where(signs == 0.0, 1.0, signs))[:, np.newaxis]
        found[:, len(POSITION_NAMES) :] = turns
    return found


def gripper_range(settings: Settings, ours: Proposal) -> list[float]:
    """Return the least and greatest value of ``gripper_command``; empty where there is none."""
    grippers = [index for index, kind in enumerate(settings.action.kinds) if kind == ActionKind.GRIPPER]
    if not grippers:
        return []
    if settings.command.gripper:
        return sorted(settings.command.gripper)
    return [ours.limits.lower[grippers[0]], ours.limits.upper[grippers[0]]]


def monitor_thresholds(runs: Sequence[RecordedRun], settings: Settings, alarm_rate: float) -> dict[str, float]:
    """Return the thresholds that a new run like these exceeds with at most this probability, each.

    The confidence of tokens is not recorded, so its threshold is not proposed.

    Raises:
        BagError: There are too few runs for that promise.
    """
    spec, window_s = ActionSpec.of(settings.action), settings.monitor.window_s
    worst: dict[str, list[float]] = {"reversals": [], "oscillation": [], "still_s": []}
    for run in runs:
        monitor = SignMonitor(spec)
        seen = [
            monitor.add(*step, math.nan, window_s) for step in zip(run.stamps_s.tolist(), run.commands, strict=True)
        ]
        for name, values in worst.items():
            values.append(max((found for signs in seen if not math.isnan(found := getattr(signs, name))), default=0.0))
    found = {f"max_{name}": conformal_threshold(values, alarm_rate) for name, values in worst.items()}
    if math.inf in found.values():
        needed = math.ceil(1.0 / alarm_rate) - 1
        raise BagError(f"--alarm-rate {alarm_rate:g} needs {needed} runs from start to stop, these are {len(runs)}")
    return {name: float(f"{value:.6g}") for name, value in found.items()}
