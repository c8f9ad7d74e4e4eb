"""Everything at random against the real policy node: ``python -m benchmarks.abuse --minutes 10 --json F.json``.

Three processes: the node with the demo policy, a camera at 10 Hz, and this one, which abuses the node
(:mod:`benchmarks.abuser`) and, on threads of its own, records every command. :mod:`benchmarks.promises` then holds the
record against what the node promises. Exits with 1 where a promise was broken, the node died, printed a traceback or
gave a wrong answer, or its memory grew.
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.qos import HistoryPolicy
from sensor_msgs.msg import Image

from benchmarks.abuser import FLOODED, KINDS, Abuser
from benchmarks.own_node import OwnNode, picture
from benchmarks.promises import Heard, Promise, Violation, judge, stop_latencies_s
from benchmarks.tables import table
from benchmarks.usage import Usage
from flashvla_ros.bringup.children import Child
from flashvla_ros.bringup.command import keep_to_this_machine
from flashvla_ros.bringup.processes import POLICY, Process
from flashvla_ros.cli.results import meta, processor_name, write_results
from flashvla_ros.core.parameter import Value
from flashvla_ros.msg import GateStatus
from flashvla_ros.nodes import interfaces

MEMORY_GROWTH = 0.05  # of the last fifth's median against the second's: a camera's largest pictures leave holes
_PERIOD_S = 0.1  # of the camera
_START_S = 600.0  # longest wait for the first command
_PARAMETERS: Mapping[str, Value] = {
    "node.autostart": True,
    "control.inference_timeout_s": 0.9,
    "control.max_image_age_s": 1.0,
    "limits.lower": (-0.01, -0.01, -0.01, -1.0),  # [m] in action.dt_s, 0.1 s
    "limits.upper": (0.01, 0.01, 0.01, 1.0),
    "limits.max_step": (0.005, 0.005, 0.005, 2.0),
}
PROMISE = Promise(speed=0.1, step=0.05, image_age_s=1.0, held_s=0.5 + 0.9 + 0.1 + 0.5)  # time-outs, pace, grace


class Witness(OwnNode):
    """Records what the node's process wrote and when, what it holds, and how late a thread on this machine is.

    Attributes:
        lateness: (time, lateness) of sleeps of 10 ms.
        usage: Of the node's process, once a second.
        moves: Number of commands that moved the robot.
    """

    def __init__(self) -> None:
        super().__init__("witness")
        self._commands: list[tuple[float, int, tuple[float, ...]]] = []
        self._gates: dict[int, tuple[str, float]] = {}
        self.lateness: list[tuple[float, float]] = []
        self.usage: list[Usage] = []
        self.moves = 0
        self._hear(interfaces.COMMAND, interfaces.COMMAND.name, self._on_command)
        self._hear(interfaces.GATE, f"{POLICY}/gate", self._on_gate)

    def _hear(self, topic: interfaces.Interface, name: str, received: Callable[..., None]) -> None:
        qos = topic.qos
        qos.history = HistoryPolicy.KEEP_ALL
        self.create_subscription(topic.type, name, received, qos)

    def watch(self, pid: int, ended: threading.Event) -> None:
        """Sample until `ended`, on the caller's thread."""
        sample_s = 0.0
        while not ended.is_set():
            due_s = time.monotonic() + 0.01
            time.sleep(0.01)
            self.lateness.append((time.time(), time.monotonic() - due_s))
            if due_s > sample_s:
                sample_s = due_s + 1.0
                try:
                    self.usage.append(Usage.of(pid))
                except ProcessLookupError:
                    return

    @property
    def heard(self) -> list[Heard]:
        """Every command so far; one without a step of its stamp is a stop action."""
        return [
            Heard(time_s, 1e-9 * stamp_ns, velocity, *self._gates.get(stamp_ns, ("", float("nan"))))
            for time_s, stamp_ns, velocity in sorted(self._commands)
        ]

    def _on_command(self, message: Any, info: Any) -> None:
        velocity = tuple(getattr(message.twist.linear, axis) for axis in "xyz")
        self.moves += any(velocity)
        self._commands.append((1e-9 * info["source_timestamp"], _ns(message.header.stamp), velocity))

    def _on_gate(self, message: GateStatus) -> None:
        self._gates[_ns(message.header.stamp)] = message.instruction, message.speed_scale


def _ns(stamp: Time) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def main(arguments: list[str] | None = None) -> int:
    """Abuse the node; 0 where it kept every promise."""
    args = _parser().parse_args(arguments)
    if args.camera:
        return _be_a_camera(flood=args.camera == "flood")
    keep_to_this_machine()
    words = Process(POLICY, parameters=_PARAMETERS).arguments()
    log: list[str] = []
    policy = Child(POLICY, [sys.executable, "-m", "flashvla_ros.nodes.policy_node", *words], log.append, verbose=True)
    witness, ended = Witness(), threading.Event()
    abuser = Abuser(args.seed, policy, _camera, lambda: witness.moves, args.only)
    begun_s = time.time()
    try:
        witness.start()
        abuser.start()
        _wait_for_a_command(witness, abuser, policy)
        threading.Thread(target=witness.watch, args=(policy.pid, ended), daemon=True).start()
        begun_s = time.time()
        abuser.run(60.0 * args.minutes)
    except ProcessLookupError:
        abuser.faults.append(f"the node has ended, or answers nothing: exit code {policy.code}, {log[-3:]}")
    finally:
        ended.set()
        policy.stop()
        abuser.close()
        abuser.camera.stop()
        witness.close()
    abuser.faults += [f"{len(log)} lines of the node, among them: {line}" for line in log if "Traceback" in line]
    return _report(args, witness, abuser, begun_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="abuse", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="after the first command (%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of what is done (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=(), metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every violation")
    parser.add_argument("--camera", metavar="NAME", help=argparse.SUPPRESS)  # be a camera's process
    return parser


def _camera(name: str) -> Child:
    return Child(name, [sys.executable, "-m", "benchmarks.abuse", "--camera", name], print, verbose=False)


def _be_a_camera(*, flood: bool) -> int:
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    node, noise = OwnNode("camera"), np.random.default_rng()
    images = node.create_publisher(Image, interfaces.IMAGE.name, 1)
    large = picture(noise, 2160, 3840) if flood else None  # drawn once: drawing it takes longer than sending it
    while not ended.wait(0.001 if flood else _PERIOD_S):
        image = picture(noise)
        if large is not None:
            large.header, image = image.header, large
        images.publish(image)
    return 0


def _wait_for_a_command(witness: Witness, abuser: Abuser, policy: Child) -> None:
    end_s = time.monotonic() + _START_S
    abuser.instruct()
    while not witness.heard:
        time.sleep(0.2)
        if policy.code is not None or time.monotonic() > end_s:
            raise ProcessLookupError


def _report(args: argparse.Namespace, witness: Witness, abuser: Abuser, begun_s: float) -> int:
    """Print what was broken, with what went before it, and write it all down."""
    heard = witness.heard
    violations = judge(heard, abuser.done, PROMISE, witness.lateness)
    for one in violations:
        print(f"\n{one.rule}, {one.time_s:.3f}: {one.text}", *one.context, sep="\n  ")
    fifths = [part for part in np.array_split(np.array([usage.rss_kib for usage in witness.usage]), 5) if len(part)]
    memory_mib = [round(float(np.median(part)) / 1024, 1) for part in fifths]
    late_ms = 1e3 * np.array([late_s for _, late_s in witness.lateness] or [np.nan])
    flooded = [one for one in abuser.done if one.text == FLOODED]
    stop_ms, flood_ms = (1e3 * np.array(stop_latencies_s(heard, done) or [np.nan]) for done in (abuser.done, flooded))
    made = meta(
        processor_name(),
        command="abuse",
        minutes=args.minutes,
        seed=args.seed,
        cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        nice=os.nice(0),
        seconds=round(time.time() - begun_s, 1),
        abuses=dict(sorted(abuser.counts.items())),
        deeds=dict(collections.Counter(str(done.deed) for done in abuser.done)),
        commands=len(heard),
        moving=sum(command.moves for command in heard),
        stops=sum(not command.instruction for command in heard),
        stop_ms={"count": len(stop_ms), "p50": np.median(stop_ms), "max": stop_ms.max()},
        flood_ms={"count": len(flood_ms), "p50": np.median(flood_ms), "max": flood_ms.max()},
        lateness_ms={"p50": np.median(late_ms), "p99": np.percentile(late_ms, 99), "max": late_ms.max()},
        memory_mib=memory_mib,
        threads=[usage.threads for usage in witness.usage[:: max(1, len(witness.usage) // 5)]],
        handles=[usage.handles for usage in witness.usage[:: max(1, len(witness.usage) // 5)]],
        faults=abuser.faults,
        violations=dict(collections.Counter(one.rule for one in violations)),
    )
    print(page({"meta": made, "rows": []}), *abuser.faults, sep="\n")
    if args.json:
        write_results(args.json, made, [_row(one, begun_s) for one in violations])
    grown = len(memory_mib) == 5 and memory_mib[-1] > (1.0 + MEMORY_GROWTH) * memory_mib[1]
    return 1 if violations or abuser.faults or grown else 0


def _row(one: Violation, begun_s: float) -> dict[str, Any]:
    return {"at_s": round(one.time_s - begun_s, 3), "rule": one.rule, "text": one.text, "context": list(one.context)}


def page(results: Mapping[str, Any]) -> str:
    """Return the machine, what was done, and what the node made of it."""
    run = results["meta"]
    words = (
        f"{run['device']}, cores: {run['cores']}, load {run['load']:.1f}, nice {run['nice']}; {run['seconds']:g} s, "
        f"{sum(run['abuses'].values())} abuses, seed {run['seed']}."
    )
    stop = "{p50:.0f} / {max:.0f} of {count}".format_map
    late = "{p50:.0f} / {p99:.0f} / {max:.0f}".format_map
    flooded = [["the same under a flood of raw 4K images", stop(run["flood_ms"])]] if "flood_ms" in run else []
    lines = [
        ["commands, of them moving", f"{run['commands']}, {run['moving']}"],
        ["from a press to the stop action, SIGSTOP included: p50 / max of n [ms]", stop(run["stop_ms"])],
        *flooded,
        ["lateness of a 10 ms sleep in the monitor: p50 / p99 / max [ms]", late(run["lateness_ms"])],
        ["resident memory, median of each fifth [MiB]", ", ".join(f"{value:g}" for value in run["memory_mib"])],
        ["wrong answers, tracebacks, deaths", str(len(run["faults"]))],
        ["broken promises", ", ".join(f"{rule}: {count}" for rule, count in run["violations"].items()) or "0"],
    ]
    kinds = table(["abuse", "times"], [[name.replace("_", " "), str(count)] for name, count in run["abuses"].items()])
    return f"{words}\n\n{table(['of the node', 'seen'], lines)}\n\n{kinds}"


if __name__ == "__main__":
    sys.exit(main())
