"""Does the guard change what the robot does? ``python -m benchmarks.guard_episodes --json F.json``, about half an hour.

The demo plays the same scenes over DDS with the guard and without it, in real time, since a robot that waits for each
command has no guard. A stop of the guard in it is a false alarm: nothing is broken here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus

from benchmarks.tables import table
from flashvla_ros.bringup.children import Child, stop_all
from flashvla_ros.bringup.command import keep_to_this_machine
from flashvla_ros.bringup.monitor import Monitor
from flashvla_ros.bringup.processes import Bringup
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name, write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.evaluation.statistics import Paired, Rate
from flashvla_ros.nodes import interfaces
from flashvla_ros.sim.tasks import TASKS

_EPISODE_S = 120.0


def play(task: str, episodes: int, *, guard: bool) -> dict[str, Any]:
    """Return which episodes succeeded, their steps, and what the guard said of its stops.

    Raises:
        FlashVLAError: A process ended, or the robot stands still.
    """
    stops: set[str] = set()
    success: list[bool] = []
    steps: list[int] = []

    def on_guard(status: DiagnosticStatus) -> None:
        """An error is a stop. The guard says so ten times a second, and each stop in other words."""
        if status.level == DiagnosticStatus.ERROR:
            stops.add(status.message)

    processes = Bringup(task=task, episodes=episodes, guard=guard).processes()
    with Monitor.running() as monitor:
        topic = interfaces.GUARD_STATUS
        monitor.create_subscription(topic.type, topic.name, on_guard, topic.qos)
        children = [
            Child(process.name, [sys.executable, "-m", process.module, *process.arguments()], print, verbose=False)
            for process in processes
        ]
        try:
            end_s = time.monotonic() + _EPISODE_S
            while len(success) < episodes:
                monitor.spin(0.1)
                for ended, _ in monitor.finished():
                    success.append(ended.success)
                    steps.append(ended.steps)
                    end_s = time.monotonic() + _EPISODE_S
                if time.monotonic() > end_s or any(child.code for child in children):
                    raise FlashVLAError(f"{task}: {len(success)} of {episodes} episodes ended")
        finally:
            stop_all(children)
    return {"task": task, "guard": guard, "success": success, "steps": steps, "stops": sorted(stops)}


def page(results: Mapping[str, Any]) -> str:
    """Return successes with and without the guard, scene by scene, and the guard's stops."""
    arms = {guard: [row for row in results["rows"] if row["guard"] is guard] for guard in (False, True)}
    outcomes = {guard: [one for row in rows for one in row["success"]] for guard, rows in arms.items()}
    paired = Paired.of(outcomes[False], outcomes[True])
    lines = [
        [
            "with the guard" if guard else "without",
            str(Rate(sum(outcomes[guard]), len(outcomes[guard]))),
            f"{sum(sum(row['steps']) for row in rows) / len(outcomes[guard]):.0f}",
            str(sum(len(row["stops"]) for row in rows)) if guard else "–",
        ]
        for guard, rows in arms.items()
    ]
    difference, low, high = paired.difference(len(outcomes[True]))
    words = f"With the guard success differs by {difference:+.1%} (Tango's 95 % interval {low:+.1%} to {high:+.1%})."
    return f"{words}\n\n{table(['commands', 'success', 'mean steps', 'stops of the guard'], lines)}"


def _run(args: argparse.Namespace) -> None:
    keep_to_this_machine()
    rows = []
    for task in TASKS:
        for guard in (True, False):
            rows.append(play(task, args.episodes, guard=guard))
            print(rows[-1], flush=True)
            if args.json is not None:
                made = meta(processor_name(), command="guard_episodes", episodes=args.episodes)
                write_results(args.json, made, rows)


def main() -> int:
    """Play every task with the guard and without."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=17, metavar="N", help="of each task (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rewritten after each task")
    args = parser.parse_args()
    return exit_code(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
