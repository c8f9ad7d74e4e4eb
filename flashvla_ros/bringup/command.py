"""``flashvla-ros bringup``: the policy node and a robot, as separate processes, on machines without ``ros2 launch``."""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashvla_ros.bringup.children import Child, stop_all
from flashvla_ros.bringup.libero import ROBOTS
from flashvla_ros.bringup.monitor import Monitor
from flashvla_ros.bringup.processes import ROBOT, Bringup
from flashvla_ros.bringup.terminal import Progress, Screen
from flashvla_ros.cli.counts import count
from flashvla_ros.cli.exits import EXIT_USAGE
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.results import meta, write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path

_LAST_WORDS_S = 0.5  # for what the processes said as they ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``bringup``."""
    robot = parser.add_argument_group("simulated robot")
    robot.add_argument("--robot", default="demo", choices=ROBOTS, help="demo: Meta-World's; LIBERO's (%(default)s)")
    robot.add_argument("--task", default="drawer-open", help="what it does (%(default)s); a misspelt one lists them")
    robot.add_argument("--episodes", type=count, default=0, metavar="N", help="then end; otherwise until Ctrl-C")
    robot.add_argument("--seed", type=count, default=0, metavar="S", help="of the first episode's scene (%(default)s)")
    robot.add_argument("--lock-step", action="store_true", help="wait for each command: runs repeat exactly")
    real = parser.add_argument_group("real robot")
    real.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="TOPIC",
        help="image topic of its driver, or NAME:=TOPIC for each of several; nothing is simulated",
    )
    real.add_argument("--checkpoint", default="", metavar="DIR", help="OpenVLA checkpoint (the demo policy)")
    real.add_argument(
        "--remap", action="append", default=[], metavar="TOPIC:=NAME", help="name of the controller's topic, …"
    )
    guard = parser.add_argument_group("guard, which stops the robot where the policy cannot")
    guard.add_argument("--no-guard", action="store_true", help="commands go to the robot directly")
    guard.add_argument("--guard-params", default="", metavar="FILE", help="its limits, in the units of the commands")
    parser.add_argument("--instruction", default="", metavar="TEXT", help="in place of the task's own")
    parser.add_argument(
        "--policy", default="", metavar="ws://HOST:PORT", help="policy server, in place of a checkpoint"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="parameter of the policy node")
    parser.add_argument("--params", default="", metavar="FILE", help="parameter file of the policy node")
    parser.add_argument("--record", type=Path, metavar="DIR", help="record every topic of the node to this new folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of the run")
    parser.add_argument("--verbose", action="store_true", help="show everything that the processes say")


def run(args: argparse.Namespace) -> int:
    """Run until the episodes are over or a signal comes.

    Returns:
        0 where all went well, 128 + the signal where it cut the episodes short, 1 where a process died, 2 where a
        process refused its settings.
    """
    bringup = Bringup(
        robot=args.robot,
        task=args.task,
        instruction=args.instruction,
        episodes=args.episodes,
        seed=args.seed,
        lock_step=args.lock_step,
        camera=" ".join(args.camera),
        checkpoint=args.checkpoint,
        policy=args.policy,
        params=args.params,
        remap=" ".join(args.remap),
        guard=not args.no_guard,
        guard_params=args.guard_params,
        overrides=parse_overrides(args.set),
    )
    commands = {
        process.name: [sys.executable, "-m", process.module, *process.arguments()] for process in bringup.processes()
    }
    if args.record:
        commands["recorder"] = [sys.executable, "-m", "flashvla_ros", "record", str(args.record)]
    if not bringup.camera:
        keep_to_this_machine()
    return _supervise(bringup, commands, args)


def _supervise(bringup: Bringup, commands: dict[str, list[str]], args: argparse.Namespace) -> int:
    """Start the processes, watch them until one ends or a signal comes, and end them all."""
    screen = Screen()
    with _signals() as signals, Monitor.running() as monitor:
        children = [Child(name, command, screen.line, verbose=args.verbose) for name, command in commands.items()]
        try:
            progress = Progress(monitor, screen, bringup)
            dead = None
            while not signals and dead is None and not progress.complete:
                monitor.spin(0.1)
                progress.update()
                dead = next((child for child in children if child.code is not None), None)
        finally:
            stop_all(children)  # the policy node first, which stops the robot; the recorder last
        monitor.spin(_LAST_WORDS_S)
        progress.close()
        if dead is not None and not (dead.name == ROBOT and dead.code == 0):
            return _report_death(dead, screen)
        if args.json:
            write_results(args.json, _meta(args, monitor), [progress.row()])
    return 128 + signals[0] if signals and bringup.episodes and not progress.complete else 0


def _report_death(dead: Child, screen: Screen) -> int:
    for line in dead.last_lines:
        screen.line(f"  {dead.name}: {line}")
    screen.line(f"{dead.name} ended with exit code {dead.code}; everything is stopped")
    return EXIT_USAGE if dead.code == EXIT_USAGE else 1


def _meta(args: argparse.Namespace, monitor: Monitor) -> dict[str, Any]:
    provenance = monitor.provenance
    return meta(
        provenance.platform.get("device", "") if provenance else "",
        command="bringup",
        task=args.task,
        seed=args.seed,
        lock_step=args.lock_step,
        platform=dict(provenance.platform) if provenance else {},
        checkpoint=provenance.checkpoint if provenance else "",
        settings=provenance.settings.values() if provenance else {},
    )


def keep_to_this_machine() -> None:
    """Choose a ROS domain that nobody on this machine uses and stay off the network, unless the user chose."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    os.environ.setdefault(profile_variable(), str(share_path("config", "fastdds_local.xml")))
    if "ROS_DOMAIN_ID" not in os.environ:
        os.environ["ROS_DOMAIN_ID"] = str(_free_domain())


def profile_variable() -> str:
    """Return the environment variable that gives Fast DDS its profiles; it was renamed with Fast DDS 3."""
    return f"{'FASTRTPS' if os.environ.get('ROS_DISTRO') == 'jazzy' else 'FASTDDS'}_DEFAULT_PROFILES_FILE"


def _free_domain() -> int:
    """A random domain below the ports that the system hands out, whose first participant's port is not taken."""
    for domain in random.sample(range(1, 100), 99):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10))  # DDS's rule for the first participant of a domain
            except OSError:
                continue
            return domain
    raise FlashVLAError("every ROS domain is in use on this machine: set ROS_DOMAIN_ID")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect what ends a process in a list, so that everything ends in order; nohup's SIGHUP stays ignored."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
