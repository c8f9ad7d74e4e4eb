"""``flashvla-ros view``: a recording, or the running node, in Rerun."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashvla_ros.bags.options import Source
from flashvla_ros.bags.options import add_arguments as add_source_arguments
from flashvla_ros.core.errors import BagError, FlashVLAError
from flashvla_ros.core.paths import checkpoint_folder
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Box

_SHOWN = ("robot_description", "joint_states", "end_effector_pose", "instruction", "settings", "tf", "tf_static")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``view``."""
    parser.add_argument("bag", type=Path, nargs="?", metavar="BAG", help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--live", action="store_true", help="the running node, until Ctrl-C, in place of a recording")
    parser.add_argument("--save", type=Path, metavar="FILE.rrd", help="write a file, and open no window")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show or save; returns the exit code."""
    if (args.bag is None) is not args.live:
        raise BagError("view takes a BAG, or --live, and not both")
    import rerun as rr

    from flashvla_ros.view.rerun_sink import RerunSink

    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if args.save is None and sys.platform == "linux" and not has_display:
        raise BagError("there is no display here: give --save FILE.rrd, and open the file with rerun elsewhere")
    stream = rr.RecordingStream("flashvla_ros")
    try:
        stream.save(args.save) if args.save else stream.spawn()
    except (OSError, RuntimeError) as error:
        raise BagError(f"cannot write {args.save}: {error}" if args.save else f"cannot start rerun: {error}") from error
    sink = RerunSink(stream, visible_boxes)
    if args.live:
        from flashvla_ros.bags.recorder import LiveTopics, Selection, record_into

        visible_boxes(Settings())  # imports torch: later, what the node publishes meanwhile would be lost
        print("showing the running node; Ctrl-C ends it", flush=True)
        record_into(LiveTopics(sink), Selection(args.node, exclude=re.compile("/overlay")))
    else:
        _read(sink, args.bag, Source.of(args))
    stream.flush()
    stream.disconnect()
    for warning in sink.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.save:
        print(f"{args.save}: open it with rerun {args.save}")
    return 0


def visible_boxes(settings: Settings) -> Callable[[int, int], Box | None]:
    """Return where the patches of an image lie by the checkpoint's preprocessing, None where it is not at hand."""
    from flashvla_ros.vla.arch.table import architecture_of
    from flashvla_ros.vla.processor import ImageProcessor

    try:
        folder = checkpoint_folder(settings.model.checkpoint)
        config = architecture_of(settings.model).outline(folder, settings.model).config
        processor = ImageProcessor.from_folder(folder, config)
    except FlashVLAError:  # of another machine, or remote
        return lambda _height, _width: None
    return dataclasses.replace(processor, crop_area=settings.model.center_crop).visible_box


def _read(sink: Any, path: Path, source: Source) -> None:
    with source.open(path) as recording:
        bag, images = recording.bag, recording.topics.images
        sink.cameras = {topic: camera for camera, topic in images.items()}
        wanted = [name for name in bag.topics if name.rpartition("/")[2] in _SHOWN]
        ours = [name for name, topic in bag.topics.items() if topic.type.startswith("flashvla_ros/")]
        failed: dict[str, str] = {}
        for message in bag.messages([*images.values(), *wanted, *ours]):
            try:
                sink.take(message.topic, message.type, bag.decode(message), message.time_ns)
            except BagError as error:
                failed.setdefault(message.topic, str(error))
        sink.warnings += [*failed.values(), *recording.warnings]
