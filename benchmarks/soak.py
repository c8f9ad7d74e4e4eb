"""Does the demo stay as it was for an hour? ``python -m benchmarks.soak --minutes 60``.

Starts the processes of ``flashvla-ros bringup``, lets the camera run at 30 Hz while parameters change at random through
the node's own parameter service, and watches what the policy node's process holds and how long its steps take. Exits
with 1 where a process died, memory, threads or handles grew, or the service answered wrongly. Latency stands beside a
reference loop that ran at the same time: on a machine with other work both drift, so a latency that grew is a fault
with ``--idle`` alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter as RosParameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.task import Future

from benchmarks.tables import table
from benchmarks.usage import LATENCY_GROWTH, MEMORY_GROWTH, MIN_WINDOWS, Drift, Usage, Window, spin_s
from flashvla_ros.bringup.children import Child, stop_all
from flashvla_ros.bringup.command import keep_to_this_machine
from flashvla_ros.bringup.monitor import Monitor
from flashvla_ros.bringup.processes import POLICY, ROBOT, Bringup, Process
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.results import meta, processor_name, write_results
from flashvla_ros.core.parameter import Parameter, Value
from flashvla_ros.core.settings import PARAMETERS
from flashvla_ros.nodes import interfaces

_START_S = 600.0  # longest wait for the first command
_SAMPLE_S = 1.0
_MIN_SAMPLES = 2  # in a window, so that there is a processor time to speak of
_ANSWER_S = 10.0  # longest wait for the parameter service
_REFUSED_SHARE = 0.1  # of the changes ask for what is out of range

# Dynamic parameters with a range: the part of it in which the demo still moves. Those with choices take all of them.
_RANGES: Mapping[str, tuple[float, float]] = {
    "pruning.keep_ratio": (0.1, 1.0),
    "pruning.rank": (0, 32),
    "pruning.seed": (0, 1000),
    "gate.delta": (0.0, 1.0),
    "gate.max_angle_deg": (0.0, 40.0),
    "gate.still_norm": (0.0, 0.2),
    "gate.max_reuse": (0, 5),
    "gate.fresh_between": (1, 4),
    "gate.max_age_s": (0.1, 2.0),
    "gate.stale_gap_s": (0.5, 2.0),
    "gate.gripper_margin": (0.0, 0.5),
    "gate.gripper_still": (0.0, 0.1),
    "gate.scene_factor": (1.0, 6.0),
    "gate.scene_floor": (0.0, 20.0),
    "gate.scene_patches": (0, 8),
    "control.image_timeout_s": (1.0, 4.0),
    "control.inference_timeout_s": (1.0, 2.4),
}
_CALIBRATED = ("gate.delta", "gate.max_angle_deg", "gate.max_reuse")  # refused while calibration moves them
_LEFT_ALONE = ("command.", "control.")  # choices of these say whether the robot moves at all


class Changes:
    """Parameters at random, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  # not a secret
        self._rows = [row for row in PARAMETERS if not row.fixed and (row.name in _RANGES or self._free(row))]
        self._online = False  # gate.calibration

    def draw(self) -> tuple[str, Value, bool]:
        """Return a name, a value, and whether the node must accept it."""
        row = self._random.choice([row for row in self._rows if not (self._online and row.name in _CALIBRATED)])
        if row.name not in _RANGES:
            value = self._random.choice(row.choices or (True, False))
            self._online = value == "online" if row.name == "gate.calibration" else self._online
            return row.name, value, True
        if row.high is not None and self._random.random() < _REFUSED_SHARE:
            return row.name, type(row.default)(2 * row.high + 1), False  # type: ignore[arg-type, call-arg]
        low, high = _RANGES[row.name]
        if row.kind == "int":
            return row.name, self._random.randint(int(low), int(high)), True
        return row.name, self._random.uniform(low, high), True

    @staticmethod
    def _free(row: Parameter) -> bool:
        return (bool(row.choices) or row.kind == "bool") and not row.name.startswith(_LEFT_ALONE)


@dataclasses.dataclass
class _Question:
    """One change that the node has been asked for."""

    future: Future[Any]
    words: str
    accepted: bool
    asked_s: float
    answered_s: float = math.nan  # rclpy calls back some time after the future is done

    def on_answer(self, _future: Future[Any]) -> None:
        self.answered_s = time.monotonic()


class Soak:
    """One run: asks, listens and samples until its time is over.

    Attributes:
        windows: What was seen so far.
        faults: What must not have happened, in words.
        episodes, successes: Of the simulated robot.
        guard_stops: What the guard said of each of its stops.

    Args:
        monitor: Hears the processes.
        pid: The policy node's process.
        window_s: Length of a window.
        change_every_s: Time between two changes.
        changes: Which.
    """

    def __init__(self, monitor: Monitor, pid: int, window_s: float, change_every_s: float, changes: Changes) -> None:
        self._monitor = monitor
        self._pid = pid
        self._window_s, self._change_every_s = window_s, change_every_s
        self._changes = changes
        self._client = AsyncParameterClient(monitor, POLICY)
        self._question: _Question | None = None
        self.windows: list[Window] = []
        self.faults: list[str] = []
        self.episodes = self.successes = 0
        self.guard_stops: set[str] = set()
        guard = interfaces.GUARD_STATUS
        monitor.create_subscription(guard.type, guard.name, self._on_guard, guard.qos)

    def _on_guard(self, status: DiagnosticStatus) -> None:
        """Note why the guard stopped the robot; it says so ten times a second, and each stop in other words."""
        if status.level == DiagnosticStatus.ERROR:
            self.guard_stops.add(status.message)

    def run(self, duration_s: float, on_window: Callable[[], None]) -> None:
        """Run until the time is over; `on_window` is called whenever a window is complete.

        Raises:
            ProcessLookupError: The policy node has ended.
        """
        self._monitor.steps.clear()
        started_s = time.monotonic()
        sample_s = change_s = 0.0
        window = Window(0.0)
        while (now_s := time.monotonic() - started_s) < duration_s:
            if now_s >= sample_s:
                sample_s = now_s + _SAMPLE_S
                window.usage.append(Usage.of(self._pid))
                window.spin_s.append(spin_s())
            if now_s >= change_s and self._question is None:
                change_s = now_s + self._change_every_s
                self._ask()
            self._monitor.spin(0.02)
            self._listen(window)
            if now_s - window.start_s >= self._window_s and len(window.usage) >= _MIN_SAMPLES:
                self.windows.append(window)
                window = Window(now_s)
                on_window()

    def _ask(self) -> None:
        name, value, accepted = self._changes.draw()
        future = self._client.set_parameters([RosParameter(name, value=value)])
        self._question = _Question(future, f"{name} = {value!r}", accepted, time.monotonic())
        future.add_done_callback(self._question.on_answer)

    def _listen(self, window: Window) -> None:
        while self._monitor.steps:
            step = self._monitor.steps.popleft()
            window.latency_s.append(step.latency_s)
            window.fresh += not step.reused
        for ended, _ in self._monitor.finished():
            self.episodes += 1
            self.successes += ended.success
            if ended.error:
                self.faults.append(f"episode {ended.episode}: {ended.error}")
        question = self._question
        if question is None:
            return
        if not math.isnan(question.answered_s):
            self._question = None
            window.set_s.append(question.answered_s - question.asked_s)
            [result] = question.future.result().results
            if result.successful is not question.accepted:
                self.faults.append(f"{question.words}: {result.reason or 'was accepted'}")
        elif time.monotonic() - question.asked_s > _ANSWER_S:
            self._question = None
            self.faults.append(f"{question.words}: no answer within {_ANSWER_S:g} s")


def main(arguments: list[str] | None = None) -> int:
    """Run the soak; 0 where nothing leaked, nothing died and every parameter was answered rightly."""
    args = _parser().parse_args(arguments)
    keep_to_this_machine()
    duration_s = 60.0 * args.minutes
    window_s = min(60.0, duration_s / 24)
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    processes = Bringup(task=args.task, seed=args.seed, overrides=parse_overrides(args.set)).processes()
    with Monitor.running() as monitor:
        children = [Child(process.name, _command(process, args.rate), print, verbose=False) for process in processes]
        try:
            _wait_for_a_step(monitor, children)
            soak = Soak(monitor, children[0].pid, window_s, args.change_every, Changes(args.seed))
            print(f"the demo runs; now {args.minutes:g} minutes of changes", flush=True)
            soak.run(duration_s, lambda: _report(soak, monitor, args, begun))
        except ProcessLookupError:
            time.sleep(0.1)  # its last words
            dead = next((child for child in children if child.code is not None), children[0])
            print("\n".join([*dead.last_lines, f"{dead.name} ended with exit code {dead.code}"]))
            return 1
        finally:
            stop_all(children)
    return _judge(soak, idle=args.idle)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="after the first command (%(default)g)")
    parser.add_argument("--rate", type=float, default=30.0, help="of the camera and the robot [Hz] (%(default)g)")
    parser.add_argument(
        "--change-every", type=float, default=2.0, metavar="S", help="a parameter changes (%(default)g)"
    )
    parser.add_argument("--task", default="drawer-open", help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the changes (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of the policy node")
    parser.add_argument("--idle", action="store_true", help="nothing else runs here: a slower end is a fault")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rewritten after each window")
    return parser


def _command(process: Process, rate_hz: float) -> list[str]:
    if process.name == ROBOT:
        process = dataclasses.replace(process, parameters={**process.parameters, "rate_hz": rate_hz})
    return [sys.executable, "-m", process.module, *process.arguments()]


def _wait_for_a_step(monitor: Monitor, children: list[Child]) -> None:
    end_s = time.monotonic() + _START_S
    while not monitor.steps:
        monitor.spin(0.1)
        if time.monotonic() > end_s or any(child.code is not None for child in children):
            raise ProcessLookupError


def _report(soak: Soak, monitor: Monitor, args: argparse.Namespace, begun: str) -> None:
    """Print the newest window and rewrite the results file: a run that is cut short leaves what it has seen."""
    rows = [window.row() for window in soak.windows]
    print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if args.json is None:
        return
    provenance = monitor.provenance
    made = meta(
        processor_name(),
        command="soak",
        minutes=args.minutes,
        rate_hz=args.rate,
        begun=begun,
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        platform=dict(provenance.platform) if provenance else {},
        task=args.task,
        seed=args.seed,
        set=args.set,
        episodes=soak.episodes,
        successes=soak.successes,
        faults=soak.faults,
        guard_stops=sorted(soak.guard_stops),
        drift=dataclasses.asdict(Drift.of(soak.windows)) if len(soak.windows) >= MIN_WINDOWS else None,
    )
    write_results(args.json, made, rows)


def page(results: Mapping[str, Any]) -> str:
    """Return the machine, and how the end of a run differs from its start."""
    run, rows, drift = results["meta"], results["rows"], results["meta"]["drift"]
    words = (
        f"{run['device']}, cores: {run['cores']}, load {run['load']:.1f} at the end; {run['minutes']:g} minutes, "
        f"{sum(row['steps'] for row in rows)} steps, {sum(row['changes'] for row in rows)} changes of parameters, "
        f"{run['episodes']} episodes."
    )
    lines = [
        ["resident memory of the policy node", f"{drift['memory_growth']:+.2%}", f"below {MEMORY_GROWTH:.0%}"],
        ["threads", f"{drift['thread_growth']:+d}", "0"],
        ["open files", f"{drift['handle_growth']:+d}", "0"],
        ["wrong answers and errors in the whole run", str(len(run["faults"])), "0"],
        ["latency p99", f"{drift['latency_growth']:+.1%}", f"{LATENCY_GROWTH:.0%} on an idle machine"],
        ["reference loop p99, same machine and time", f"{drift['spin_growth']:+.1%}", "–"],
        ["processor time of a step", f"{drift['cpu_growth']:+.1%}", "–"],
    ]
    return f"{words}\n\n{table(['last quarter against first', 'growth', 'allowed'], lines)}"


def _judge(soak: Soak, *, idle: bool) -> int:
    drift = Drift.of(soak.windows)
    faults = [*soak.faults, *drift.leaks(), *(drift.slowness() if idle else [])]
    print(f"{soak.successes} of {soak.episodes} episodes succeeded, under parameters chosen at random")
    print(
        f"end against start: memory {drift.memory_growth:+.2%}, threads {drift.thread_growth:+d}, open files "
        f"{drift.handle_growth:+d}, latency p99 {drift.latency_growth:+.1%}, reference loop p99 "
        f"{drift.spin_growth:+.1%}, processor time of a step {drift.cpu_growth:+.1%}"
    )
    print(f"the guard stopped the robot {len(soak.guard_stops)} times", *sorted(soak.guard_stops), sep="\n  ")
    for fault in faults:
        print(f"fault: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
