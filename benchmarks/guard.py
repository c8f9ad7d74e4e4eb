"""What the guard adds: ``python -m benchmarks.guard --json benchmarks/results/guard.json``, on an idle machine.

The time from the publication of a command to the guard's is taken from what the middleware stamps on it, with the guard
and this publisher in processes of their own.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.subscription import MessageInfo

from benchmarks.tables import table
from flashvla_ros.bringup.command import keep_to_this_machine
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name, write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.nodes import interfaces

_START_S = 60.0
_BOUNDS = (
    "guard.timeout_s:=0.5",
    "limits.lower:=[-0.1,-0.1,-0.1,0.0,0.0,0.0]",
    "limits.upper:=[0.1,0.1,0.1,0.0,0.0,0.0]",
)


def latency(commands: int, period_s: float) -> dict[str, Any]:
    """Return milliseconds that the guard adds, and what its process costs.

    Raises:
        FlashVLAError: The guard does not start.
    """
    parameters = [word for value in _BOUNDS for word in ("-p", value)]
    started_s = time.monotonic()
    guard = subprocess.Popen([sys.executable, "-m", "flashvla_ros.guard.node", "--ros-args", *parameters])  # noqa: S603
    rclpy.init(args=[])
    node = Node("guard_benchmark")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    out = node.create_publisher(TwistStamped, interfaces.COMMAND.name + interfaces.UNGUARDED, interfaces.COMMAND.qos)
    sent: dict[int, float] = {}
    late: list[float] = []

    def on_command(message: TwistStamped, info: MessageInfo) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if stamp in sent:  # not the guard's own stop
            late.append(info["source_timestamp"] * 1e-9 - sent.pop(stamp))

    node.create_subscription(TwistStamped, interfaces.COMMAND.name, on_command, interfaces.COMMAND.qos)
    try:
        while not out.get_subscription_count():
            executor.spin_once(timeout_sec=0.001)
            if time.monotonic() - started_s > _START_S or guard.poll() is not None:
                raise FlashVLAError("the guard does not start: run it by hand, python -m flashvla_ros.guard.node")
        start_s = time.monotonic() - started_s
        end = time.monotonic() + 1.0  # both directions are known by then
        while time.monotonic() < end:
            executor.spin_once(timeout_sec=0.01)
        before_s, began_s = _processor_s(guard.pid), time.monotonic()
        jitter = []
        for _ in range(commands):
            message = TwistStamped()
            message.twist.linear.x = 0.05
            message.header.stamp = node.get_clock().now().to_msg()
            sent[message.header.stamp.sec * 10**9 + message.header.stamp.nanosec] = time.time()
            out.publish(message)
            due_s = time.monotonic() + period_s
            executor.spin_once(timeout_sec=0.0)
            while (rest_s := due_s - time.monotonic()) > 0.0:
                executor.spin_once(timeout_sec=rest_s)
            jitter.append(time.monotonic() - due_s)
        used = (_processor_s(guard.pid) - before_s) / (time.monotonic() - began_s)
        p50, p99 = np.percentile(late, (50, 99)) * 1e3
        return {
            "name": "latency",
            "commands": commands,
            "passed": len(late),
            "period_s": (time.monotonic() - began_s) / commands,
            "p50_ms": p50,
            "p99_ms": p99,
            "max_ms": max(late) * 1e3,
            "idle_jitter_p99_ms": float(np.percentile(jitter, 99)) * 1e3,
            "start_s": start_s,
            "memory_mb": _memory_mb(guard.pid),
            "processor_share": used,
        }
    finally:
        guard.send_signal(signal.SIGTERM)
        guard.wait()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


def page(results: Mapping[str, Any]) -> str:
    """Return the latency, and what the process costs."""
    run = results["meta"]
    lines = [
        [
            *(f"{row[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms", "idle_jitter_p99_ms")),
            *(f"{row[name]:.1f}" for name in ("start_s", "memory_mb")),
            f"{row['processor_share']:.1%}",
        ]
        for row in results["rows"]
    ]
    head = ["p50 ms", "p99 ms", "max ms", "idle timer p99 ms", "start s", "memory MB", "processor at 50 Hz"]
    return f"{run['device']}, load {run['load_average']:.1f}.\n\n{table(head, lines)}"


def _memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latency", type=int, default=2000, metavar="N", help="timed commands (%(default)s)")
    parser.add_argument("--period", type=float, default=0.02, metavar="S", help="between two of them (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    keep_to_this_machine()
    load = os.getloadavg()[0]  # of the machine, which is not ours alone
    rows = [latency(args.latency, args.period)]
    print(rows[0])
    if args.json:
        cores = os.cpu_count()
        write_results(args.json, meta(f"{processor_name()}, cores: {cores}", command="guard", load_average=load), rows)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
