"""Does the guard stop the robot, whatever happens to the policy? ``python -m benchmarks.guard_trials --json F.json``.

Policy node and guard are processes; this one is camera, robot, operator and observer. When something was sent is what
the middleware stamps on it. A stop is due when the cause begins, or, where only silence tells of it, a time
``guard.timeout_s`` after the last command. It is in time within 1.5 control periods and what an idle timer of this
process was late by in the same trial. The file is rewritten after each kind; a run that was cut short goes on,
with the same code.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from rclpy.subscription import MessageInfo
from rclpy.timer import Timer
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from benchmarks.digest import digest
from benchmarks.tables import table
from flashvla_ros.bringup.command import keep_to_this_machine
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name, read_results, write_results
from flashvla_ros.nodes import interfaces

sys.path.append(str(Path(__file__).parents[1] / "test" / "system"))

from surroundings import PERIOD_S, Camera, Surroundings, seconds

TIMEOUT_S = 0.5
BOUND_S = 1.5 * PERIOD_S
_AFTER_S = 0.5  # for which nothing may move after a stop
_MEASURED = 0.1  # where every joint is said to be
_JOINTS = ("a", "b", "c", "d")
_INPUT = interfaces.COMMAND.name + interfaces.UNGUARDED
_PATIENCE_S = 4.0  # for a stop
_LONG_S = 300.0  # for a process to start
_FIRST = -20


class Trials(Surroundings):
    """A policy node and its guard, for twists or for absolute joints.

    Attributes:
        sent: When the guard published each command [s, system's clock], and whether it moves the robot.
        late_s: What an idle timer was late by, since it was set to 0.
        silent: Only silence told of what went wrong since then.
        oldest_s: Age by its stamp of the oldest command that passed.
    """

    def __init__(self, folder: Path, joints: bool) -> None:
        self._joints, space = joints, "/trials_joints" if joints else "/trials_twist"
        meaning: dict[str, Any] = {"control.require_guard": "true", "control.frozen_image_s": 0.0, "gate.mode": "off"}
        if joints:
            names = {"action.names": list(_JOINTS), "action.kinds": ["absolute"] * 4}
            meaning |= {"command.type": "Float64MultiArray", **names}
        remapped = ("command:=command_unguarded", "gripper_command:=gripper_command_unguarded")
        super().__init__(folder, space, remapped, **meaning)
        self._space = space
        self.sent: list[tuple[float, bool]] = []
        self.kind = Float64MultiArray if joints else TwistStamped
        self.node.create_subscription(self.kind, "passed", self._on_command, 100)
        self._button = self.node.create_publisher(Bool, "emergency_stop", 10)
        self._states = self.node.create_publisher(JointState, "joint_states", 10)
        self.node.create_timer(0.1, self._report_joints)
        self._resets = [self.node.create_client(Trigger, f"{space}/{name}/reset") for name in ("flashvla", "guard")]
        limits = [2.0] * 4 if joints else [0.1] * 3 + [0.0] * 3
        values = {
            **{name: value for name, value in meaning.items() if name.startswith(("action.", "command."))},
            "guard.timeout_s": TIMEOUT_S,
            "limits.lower": [-value for value in limits],
            "limits.upper": limits,
        }
        words = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
        command = [sys.executable, "-m", "flashvla_ros.guard.node", "--ros-args", "-r", f"__ns:={space}", *words]
        _precede(0)
        self._guard = subprocess.Popen([*command, "-r", "command:=passed"], stderr=self._log)  # noqa: S603
        _precede(_FIRST)
        self.late_s = self.oldest_s = 0.0
        self.silent = False
        threading.Thread(target=self._idle, daemon=True).start()

    def _idle(self) -> None:
        while True:
            due_s = time.monotonic() + 0.01
            time.sleep(0.01)
            self.late_s = max(self.late_s, time.monotonic() - due_s)

    def _report_joints(self) -> None:
        message = JointState(name=list(_JOINTS), position=[_MEASURED] * len(_JOINTS))
        message.header.stamp = self.node.get_clock().now().to_msg()
        self._states.publish(message)

    def _on_command(self, message: Any, info: MessageInfo) -> None:
        moves = any(value != _MEASURED for value in message.data) if self._joints else message.twist.linear.x != 0.0
        sent_s = info["source_timestamp"] * 1e-9
        self.sent.append((sent_s, moves))
        if moves and not self._joints:
            self.oldest_s = max(self.oldest_s, sent_s - seconds(message.header.stamp))

    @property
    def moving(self) -> bool:
        """Whether the last command moves the robot."""
        return bool(self.sent) and self.sent[-1][1]

    @property
    def _moving(self) -> bool:
        return self.moving

    def move(self) -> None:
        """Wait until the robot moves, and go on for a while."""
        self.run()
        count = len(self.sent)
        self.until(lambda: len(self.sent) >= count + 3 and self._moving, "motion")
        self.late_s, self.silent = 0.0, False

    def replug(self) -> None:
        """Put a camera in the place of the one that was taken away, and wait until its pictures are heard."""
        self.camera = camera = Camera(topic=f"{self._space}/image")
        self.until(lambda: camera.heard, "the camera's discovery")
        count = len(camera.stamps)
        self.until(lambda: len(camera.stamps) >= count + 3, "pictures")

    def drive(self) -> None:
        """Command the robot from this process, in the place of the policy, until it moves."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            self.process.poll = lambda: None  # type: ignore[method-assign]  # until() would take its end for a failure
        self.value, self._publisher = 0.05, self.node.create_publisher(self.kind, _INPUT, interfaces.COMMAND.qos)
        self._timer: Timer | None = self.node.create_timer(PERIOD_S, self._drive)
        count = len(self.sent)
        self.until(lambda: len(self.sent) >= count + 3 and self._moving, "motion")
        self.late_s = 0.0

    def leave(self) -> None:
        """End that, where it has not ended."""
        if self._timer is not None:
            self.node.destroy_timer(self._timer)
            self.node.destroy_publisher(self._publisher)
            self._timer = None

    def _drive(self) -> None:
        message = self.kind()
        if self._joints:
            message.data = [self.value] * len(_JOINTS)
        else:
            message.header.stamp = self.node.get_clock().now().to_msg()
            message.twist.linear.x = self.value
        self._publisher.publish(message)

    def press(self) -> None:
        """Press the emergency stop and let it go."""
        for pressed in (True, False):
            self._button.publish(Bool(data=pressed))

    def reset(self) -> None:
        """Release it in both processes."""
        for client in self._resets:
            self.until(client.service_is_ready, "the reset")
            answer = client.call_async(Trigger.Request())
            self.until(answer.done, "the reset's answer")

    def restart(self) -> None:
        """Put a new policy in the place of the old one."""
        self.process.kill()
        self.process.wait()
        self.start_policy()

    def crowd(self) -> Callable[[], None]:
        """Put a second publisher of commands beside the first; returns what takes it away."""
        publisher = self.node.create_publisher(self.kind, _INPUT, interfaces.COMMAND.qos)
        return lambda: self.node.destroy_publisher(publisher) and None

    def wait(self, condition: Callable[[], bool], patience_s: float) -> bool:
        """Let time pass until a condition holds; says whether it came to that."""
        end_s = time.monotonic() + patience_s
        self.until(lambda: condition() or time.monotonic() > end_s, "the end", patience_s + 60.0)
        return condition()

    def until(self, condition: Callable[[], Any], what: str, patience_s: float = _LONG_S) -> None:
        """Let time pass until `condition` holds; a process may take long to start on a machine with other work."""
        super().until(condition, what, patience_s)

    def start_policy(self) -> None:
        """Start it without this process's precedence."""
        _precede(0)
        super().start_policy()
        _precede(_FIRST)

    def close(self) -> None:
        """End everything."""
        self._guard.kill()
        self._guard.wait()
        super().close()


End = Callable[[], object]


def _precede(nice: int) -> None:
    if os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, nice)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One thing that goes wrong.

    Attributes:
        begin: Makes it go wrong; returns what ends it.
        silent: Only silence tells of it.
        own: This process commands the robot in the place of a policy.
    """

    begin: Callable[[Trials, int], End]
    silent: bool = False
    own: bool = False


def _killed(bench: Trials, _trial: int) -> End:
    bench.process.poll()
    os.kill(bench.process.pid, signal.SIGKILL)
    bench.process.poll = lambda: None  # type: ignore[method-assign]
    return bench.restart


def _suspended(bench: Trials, _trial: int) -> End:
    bench.process.send_signal(signal.SIGSTOP)
    return lambda: bench.process.send_signal(signal.SIGCONT)


def _faulty(word: str) -> Callable[[Trials, int], End]:
    def begin(bench: Trials, _trial: int) -> End:
        bench.fault(word)
        if word != "oom":
            return lambda: bench.fault("")
        bench.process.poll = lambda: None  # type: ignore[method-assign]  # it may end, or be of no more use

        def end() -> None:
            bench.fault("")
            bench.restart()

        return end

    return begin


def _crowded_out(_bench: Trials, _trial: int) -> End:
    burn = "import os\nos.nice(-15 if os.geteuid() == 0 else 0)\nwhile True: pass"
    burning = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(2 * (os.cpu_count() or 1))]  # noqa: S603

    def end() -> None:
        for process in burning:
            process.kill()
            process.wait()

    return end


def _pressed(bench: Trials, trial: int) -> End:
    """While it moves, while it waits for a camera, and while another stop is in force; both end after the press."""
    again: End = bool
    if trial % 3 == 1:
        bench.unplug()
        bench.silent, again = True, bench.replug
    elif trial % 3 == 2:
        again = bench.crowd()
    if trial % 3:
        bench.until(lambda: not bench.moving, "the stop action")
    bench.press()
    again()
    return bench.reset


def _not_a_number(bench: Trials, _trial: int) -> End:
    bench.value = math.nan
    return bench.leave


def _gone(bench: Trials, _trial: int) -> End:
    bench.leave()
    return bench.leave


KINDS: Mapping[str, Kind] = {
    "SIGSTOP and SIGCONT": Kind(_suspended, silent=True),
    "model hangs": Kind(_faulty("slow"), silent=True),
    "NaN in the policy": Kind(_faulty("nan"), silent=True),
    "all cores busy at higher priority": Kind(_crowded_out, silent=True),
    "second publisher": Kind(lambda bench, _: bench.crowd()),
    "emergency stop in every state": Kind(_pressed),
    "SIGKILL": Kind(_killed, silent=True),
    "out of memory": Kind(_faulty("oom"), silent=True),
    "NaN command": Kind(_not_a_number, own=True, silent=True),
    "writer gone": Kind(_gone, own=True),
}


def run_trial(bench: Trials, kind: Kind, trial: int) -> dict[str, Any]:
    """Let it go wrong once; returns when the stop came, and what moved after it."""
    bench.drive() if kind.own else bench.move()
    before, began_s = len(bench.sent), time.time()
    end = kind.begin(bench, trial)
    stopped = bench.wait(lambda: not bench.moving, _PATIENCE_S)
    stop = next((at for at in range(max(before, 1), len(bench.sent)) if not bench.sent[at][1]), None)
    late_s = None
    if stop is not None:
        silent = kind.silent or bench.silent
        late_s = bench.sent[stop][0] - (bench.sent[stop - 1][0] + TIMEOUT_S if silent else began_s)
    count = len(bench.sent) if stop is None else stop
    bench.spin(_AFTER_S if stopped else 0.0)
    moved = sum(moves for _, moves in bench.sent[count:]) if stopped else 0
    times = [sent_s for sent_s, moves in bench.sent[before:] if moves]
    gap_s = max((after - at for at, after in itertools.pairwise(times)), default=0.0)
    row = {"late_s": late_s, "jitter_s": bench.late_s, "stopped": stopped, "moved_after": moved, "silence_s": gap_s}
    end()
    return row


def run_kind(name: str, joints: bool, trials: int) -> dict[str, Any]:
    """Run the trials of one kind; the last of them has recovered where the next can move.

    Raises:
        AssertionError: The robot did not move again.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bench = Trials(Path(folder), joints)
        try:
            bench.move()
            rows = [run_trial(bench, KINDS[name], trial) for trial in range(trials)]
            if KINDS[name].own:
                bench.restart()
            bench.move()
        finally:
            bench.close()
    due = [row for row in rows if row["stopped"] or row["silence_s"] > TIMEOUT_S + BOUND_S]
    late = [row["late_s"] for row in due if row["late_s"] is not None]
    in_time = [row for row in due if row["late_s"] is None or row["late_s"] <= BOUND_S + row["jitter_s"]]
    return {
        "kind": name,
        "command": "absolute joints" if joints else "twist",
        "trials": trials,
        "due": len(due),
        "stopped": sum(row["stopped"] for row in due),
        "in_time": sum(row["stopped"] for row in in_time),
        "moved_after": sum(row["moved_after"] for row in rows),
        "recovered": trials,
        "late_p50_s": float(np.median(late)) if late else None,
        "late_max_s": max(late, default=None),
        "jitter_max_s": max(row["jitter_s"] for row in rows),
        "oldest_s": bench.oldest_s,
        "seconds": time.monotonic() - began_s,
        "rows": rows,
    }


def page(results: Mapping[str, Any]) -> str:
    """Return what was seen of each kind."""
    lines = [
        [
            row["kind"],
            row["command"],
            *(str(row[name]) for name in ("trials", "due", "stopped", "in_time", "moved_after", "recovered")),
            *("–" if row[name] is None else f"{row[name] * 1e3:.0f}" for name in ("late_p50_s", "late_max_s")),
            f"{row['jitter_max_s'] * 1e3:.0f}",
        ]
        for row in results["rows"]
    ]
    head = ["kind", "command", "trials", "due", "stopped", "in time", "moved after", "recovered"]
    run = results["meta"]
    machine = f"{run['device']}, load {run['load']:.1f} in the last run"
    words = f"{machine}; allowed: {BOUND_S * 1e3:.0f} ms and the timer's lateness."
    return f"{words}\n\n{table([*head, 'late ms, p50', 'late ms, max', 'idle timer ms, max'], lines)}"


def code_of_trials() -> str:
    """Return a name for the code that is tried, and for what tries it."""
    root = Path(__file__).parents[1]
    rooms = [root / "flashvla_ros" / name for name in ("guard", "nodes", "messages")]
    bench = [root / "test" / "system" / name for name in ("surroundings.py", "faulty_policy_node.py")]
    return digest(*rooms, *bench, Path(__file__))


def _run(args: argparse.Namespace) -> None:
    rows = list(read_results(args.json)["rows"]) if args.json.exists() else []
    code, load = code_of_trials(), os.getloadavg()[0]
    for name in args.kinds or KINDS:
        for joints in (False, True):
            kind = name, "absolute joints" if joints else "twist"
            before = next((row for row in rows if (row["kind"], row["command"]) == kind), {})
            if before.get("code") == code and before["trials"] >= args.trials:
                continue
            rows = [row for row in rows if row is not before]
            rows.append({**run_kind(name, joints, args.trials), "code": code})
            print({key: value for key, value in rows[-1].items() if key != "rows"}, flush=True)
            write_results(args.json, meta(processor_name(), command="guard_trials", load=load), rows)


def main() -> int:
    """Run what is still missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="of each kind (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help="only these")
    results = Path(__file__).parent / "results" / "guard_trials.json"
    parser.add_argument("--json", type=Path, default=results, metavar="FILE", help="%(default)s")
    args = parser.parse_args()
    keep_to_this_machine()
    _precede(_FIRST)  # camera and operator are not to starve with the policy
    return exit_code(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
