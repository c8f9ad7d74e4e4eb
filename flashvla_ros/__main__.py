"""``flashvla-ros <command>``: one table of commands, each in a module that is imported only when it runs.

A command's module has ``add_arguments(parser)`` and ``run(args) -> int``. It imports what only some machines have
(rclpy, MuJoCo, rosbags) as it likes: what is missing is answered here with the extra that brings it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import flashvla_ros
from flashvla_ros.cli.exits import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USAGE
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.extras import refusal


class Subcommand(NamedTuple):
    """One row of the table."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Subcommand("bringup", "flashvla_ros.bringup.command", "start the policy node and a robot, and count episodes"),
    Subcommand("eval", "flashvla_ros.evaluation.command", "measure success, cost and reaction in closed loop"),
    Subcommand(
        "certify", "flashvla_ros.evaluation.certify_command", "find the fastest setting whose failures are bounded"
    ),
    Subcommand("record", "flashvla_ros.bags.record", "record the node's topics, on machines without ros2 bag too"),
    Subcommand("replay", "flashvla_ros.bags.replay", "run a bag through the node's own control step, and compare"),
    Subcommand("view", "flashvla_ros.bags.view", "a recording or the running node in Rerun, on one timeline"),
    Subcommand("export", "flashvla_ros.bags.export", "recordings as a LeRobot dataset, to train on"),
    Subcommand("doctor", "flashvla_ros.doctor.command", "what is missing here or in a checkpoint, and how to mend it"),
    Subcommand("tune", "flashvla_ros.bags.tune", "find the thresholds that reuse most within an error you allow"),
    Subcommand(
        "bench", "flashvla_ros.bench.command", "what a step costs, against the plain model and the other pruners"
    ),
    Subcommand("serve", "flashvla_ros.remote.serve", "our policy over openpi's protocol, for whoever speaks it"),
    Subcommand("params", "flashvla_ros.cli.reference", "print every parameter with default, range and meaning"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 for what the user can mend, with one line that says how."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if not argument.startswith("-")), "")
    try:
        args = _parser(chosen).parse_args(arguments)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except (FlashVLAError, ImportError) as error:
        if not (line := refusal(error, chosen)):
            raise
        print(f"flashvla-ros: {line}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again as it exits
        return EXIT_BROKEN_PIPE


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser, with the arguments of the chosen command only, so that no other module is imported."""
    parser = argparse.ArgumentParser(prog="flashvla-ros", description=flashvla_ros.__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"flashvla_ros {flashvla_ros.__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(command.name, help=command.summary, description=command.summary)
        if command.name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
