"""``flashvla-ros record``: the policy node's topics, with its settings and weights, in a rosbag2 folder."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from flashvla_ros.cli.parameter_files import DEFAULT_NODE
from flashvla_ros.core.errors import BagError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``record``."""
    parser.add_argument("bag", type=Path, help="folder to write, in rosbag2's format with MCAP storage; must not exist")
    parser.add_argument(
        "--node", type=full_name, default=DEFAULT_NODE, help="policy node whose topics are recorded (%(default)s)"
    )
    parser.add_argument(
        "--topics", type=full_name, nargs="+", action="extend", default=[], metavar="TOPIC", help="record these topics"
    )
    parser.add_argument("--all", action="store_true", help="record every topic")
    parser.add_argument("--exclude", metavar="REGEX", help="never record these (/overlay; with --topics none)")
    parser.add_argument("--duration", type=float, metavar="S", help="stop after so many seconds; otherwise on Ctrl-C")
    parser.add_argument("--queue-mb", type=int, default=256, help="memory for messages not yet written (%(default)s)")


def full_name(name: str) -> str:
    """Return the name of a node or topic from the root, where ROS's tools let people leave the slash out."""
    return f"/{name.strip('/')}"


def run(args: argparse.Namespace) -> int:
    """Record until Ctrl-C, SIGTERM or ``--duration``; returns the exit code."""
    from flashvla_ros.bags.recorder import Selection, record_into
    from flashvla_ros.bags.writer import BagWriter

    if args.all and args.topics:
        raise BagError("--all and --topics contradict each other: leave one of them out")
    exclude = ("" if args.topics else "/overlay") if args.exclude is None else args.exclude
    selection = Selection(args.node, tuple(args.topics), args.all, _pattern(exclude))
    writer = BagWriter(args.bag, capacity_bytes=args.queue_mb * 2**20)
    print(f"recording to {args.bag}; Ctrl-C ends it", flush=True)
    try:
        record_into(writer, selection, args.duration if args.duration is not None else float("inf"))
    finally:
        writer.close()
    _summarise(args.bag, writer.written, writer.dropped)
    for topic in args.topics:
        if not writer.written.get(topic):
            print(f"warning: nothing of {topic} was recorded: is it published under this name?", file=sys.stderr)
    return 0


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise BagError(f"--exclude {text!r} is not a regular expression: {error}") from error


def _summarise(bag: Path, written: dict[str, int], dropped: dict[str, int]) -> None:
    for topic in sorted(written):
        print(f"  {topic}: {written[topic]} messages")
    if not written:
        print(f"warning: nothing was published; {bag} is empty", file=sys.stderr)
    for topic, count in sorted(dropped.items()):
        print(f"warning: {topic}: {count} messages dropped because the disk was too slow", file=sys.stderr)
