"""What ``replay`` and ``tune`` ask on the command line, and how a recording is opened with it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flashvla_ros.bags.frames import Frames
from flashvla_ros.bags.playback import SettingsInForce
from flashvla_ros.bags.reader import Bag, open_bag
from flashvla_ros.bags.record import full_name
from flashvla_ros.bags.steps import RunLog, read_log
from flashvla_ros.bags.topics import Topics, find_topics, parse_remappings
from flashvla_ros.cli.overrides import parse_overrides
from flashvla_ros.cli.parameter_files import DEFAULT_NODE, read_parameters


@dataclasses.dataclass(frozen=True)
class Source:
    """How to read recordings; picklable, so that other processes can.

    Attributes:
        changed: Parameters to use instead of the recorded ones.
        remappings: Role to topic.
        node: Full name of the policy node.
        instruction: Instruction until the first recorded one.
        every_image: Take every image, not only those that the node answered.
    """

    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remappings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    node: str = DEFAULT_NODE
    instruction: str = ""
    every_image: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> Source:
        """Read the options of :func:`add_arguments`."""
        changed = {**(read_parameters(args.settings, args.node) if args.settings else {}), **parse_overrides(args.set)}
        return cls(changed, parse_remappings(args.topic), args.node, args.instruction, args.every_image)

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[Recording]:
        """Open a recording and find its topics, settings and steps.

        Raises:
            BagError: It cannot be read, or lacks what was asked of it.
        """
        with open_bag(path) as bag:
            log = read_log(bag, find_topics(bag, self.remappings, self.node, None))
            settings = SettingsInForce(log, self.changed)
            topics = find_topics(bag, self.remappings, self.node, settings.first.camera.names)
            steps = None if self.every_image else log
            frames = Frames(bag, topics, settings.first, steps, self.instruction)
            yield Recording(bag, topics, log, settings, frames)


@dataclasses.dataclass(eq=False)
class Recording:
    """An open recording with everything that is known before its images are read."""

    bag: Bag
    topics: Topics
    log: RunLog
    settings: SettingsInForce
    frames: Frames

    @property
    def warnings(self) -> list[str]:
        """Everything odd found so far."""
        return [*self.bag.warnings, *self.topics.notes, *self.log.warnings, *self.frames.warnings]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say how to read a recording."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="use this value of a parameter"
    )
    parser.add_argument("--settings", type=Path, metavar="YAML", help="use what a ROS parameter file sets for --node")
    parser.add_argument(
        "--topic", action="append", default=[], metavar="ROLE=/TOPIC", help="image, instruction, gate, … have this name"
    )
    parser.add_argument(
        "--node", type=full_name, default=DEFAULT_NODE, help="full name of the policy node (%(default)s)"
    )
    parser.add_argument("--instruction", default="", help="instruction until the first recorded one")
    parser.add_argument("--every-image", action="store_true", help="take every image, not only those the node answered")
