"""``flashvla-ros export``: recordings of the node as a LeRobotDataset v3.0, the failed episodes among them."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from flashvla_ros.bags.frames import Frame
from flashvla_ros.bags.options import Recording, Source
from flashvla_ros.bags.options import add_arguments as add_source_arguments
from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.core.errors import BagError

if TYPE_CHECKING:  # of the extra `export`
    from flashvla_ros.bags.dataset import Dataset, Feature, Row

EPISODE_TYPE = "flashvla_ros/msg/EpisodeStatus"
STARTED, ENDED = 0, 2  # EpisodeStatus.event
_GATE = {  # columns `gate.*`: fields of GateStatus
    "reuse": ("decision", "bool"),
    "reason": ("reason", "string"),
    **{name: (name, "float64") for name in ("angle_deg", "overlap", "scene_level", "age_s")},
}


@dataclasses.dataclass(frozen=True)
class EpisodeSpan:
    """When an episode ran, by the stamps of its images, and how it ended; None and "" where the recording says nothing.

    Attributes:
        start_ns, end_ns: Stamps from and up to which a step belongs to it.
        success: Of the instruction in force when it ended.
        error: Why it could not be run to its end.
    """

    start_ns: int
    end_ns: int
    success: bool | None = None
    error: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``export``."""
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG", help="rosbag2 folder, or one .mcap or .db3 file")
    parser.add_argument("--lerobot", type=Path, required=True, metavar="DIR", help="dataset to write, or to add to")
    parser.add_argument("--fps", type=int, help="frames a second; otherwise what the recorded steps have")
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the episodes that the dataset has not; an interrupted export goes on where it was."""
    from flashvla_ros.bags.dataset import Dataset

    if args.fps is not None and args.fps < 1:
        raise BagError(f"--fps must be at least 1, got {args.fps}")
    if args.every_image:
        raise BagError("only images that the node answered have an action to export: leave --every-image out")
    source, dataset = Source.of(args), Dataset(args.lerobot)
    try:
        for bag in args.bags:
            with source.open(bag) as recording:
                for line in export_bag(recording, dataset, args.fps):
                    print(line, flush=True)
            for warning in recording.warnings:
                print(f"warning: {bag}: {warning}", file=sys.stderr)
    except OSError as error:  # the encoder's errors are such, too
        raise BagError(f"cannot write {args.lerobot}: {error.strerror or error}") from error
    finally:
        if dataset.info.get("total_episodes"):
            dataset.write_stats()
    print(f"{args.lerobot}: {dataset.info['total_episodes']} episodes, {dataset.info['total_frames']} frames")
    return 0


def export_bag(recording: Recording, dataset: Dataset, fps: int | None = None) -> Iterator[str]:
    """Add the episodes of a recording that the dataset has not; yield a line on each.

    Raises:
        BagError: It has no steps of the node, or differs from the dataset in kind.
    """
    name, steps = recording.bag.path.name, recording.log.steps
    if not steps or recording.topics.gate is None:
        raise BagError(f"{recording.bag.path} has no steps of the node (~/gate), and so no actions to export")
    stamps = np.asarray([step.stamp_ns for step in steps])
    span_at = {
        stamp_ns: span
        for span in reversed(episode_spans(recording))  # a step on the border of two is of the first
        for stamp_ns in stamps[(span.start_ns <= stamps) & (stamps <= span.end_ns)].tolist()
    }
    spans = set(span_at.values())
    if not spans:
        raise BagError(f"{recording.bag.path}: none of its {len(steps)} steps is in one of its episodes, by the stamps")
    missing = {span for span in spans if (name, span.start_ns) not in dataset.done}
    if len(missing) < len(spans):
        yield f"{name}: {len(spans) - len(missing)} of {len(spans)} episodes are there already"
    if not missing:
        return
    fps = fps or max(round(1e9 / np.median(np.diff(stamps))), 1) if len(stamps) > 1 else fps or 1

    def span_of(frame: Frame) -> EpisodeSpan | None:
        if frame.recorded is None:
            raise BagError(f"{recording.bag.path}: {'; '.join(recording.warnings)}, so they have no actions to export")
        return span_at.get(frame.recorded.stamp_ns)

    with tqdm(recording.frames, unit="frame", mininterval=INTERVAL_S, delay=INTERVAL_S) as frames:
        for span, group in itertools.groupby(frames, span_of):
            if span is None or span not in missing:
                continue
            first = next(group)
            dataset.declare(features_of(first, recording), fps)
            about = {"bag": name, "start_ns": span.start_ns, "success": span.success, "error": span.error}
            count = dataset.write(_rows(itertools.chain([first], group), recording, span), about)  # noqa: B031 - in one pass
            outcome = {True: "success", False: "failed", None: "outcome unknown"}[span.success]
            yield f"{name}: {count} frames, {outcome}{f' ({span.error})' if span.error else ''}"


def episode_spans(recording: Recording) -> list[EpisodeSpan]:
    """Return the episodes that a recording tells of, one of its whole length where it tells of none."""
    bag, steps = recording.bag, recording.log.steps
    topics = [name for name, topic in bag.topics.items() if topic.type == EPISODE_TYPE]
    spans: list[EpisodeSpan] = []
    end_ns = max(step.stamp_ns for step in steps)
    for message in bag.messages(topics[:1]):
        status = bag.decode(message)
        stamp_ns = status.header.stamp.sec * 10**9 + status.header.stamp.nanosec
        if status.event == STARTED:
            if spans and spans[-1].success is None:  # its end was not recorded
                spans[-1] = dataclasses.replace(spans[-1], end_ns=stamp_ns - 1)
            spans.append(EpisodeSpan(stamp_ns, end_ns))
        elif status.event == ENDED and spans:
            spans[-1] = EpisodeSpan(spans[-1].start_ns, stamp_ns, bool(status.success), status.error)
    return spans or [EpisodeSpan(min(step.stamp_ns for step in steps), end_ns)]


def features_of(frame: Frame, recording: Recording) -> dict[str, Feature]:
    """Return the features of a dataset out of its first frame."""

    def feature(dtype: str, names: Iterable[str] = ()) -> Feature:
        names = list(names)
        return {"dtype": dtype, "shape": [max(len(names), 1)], "names": names or None}

    features = {}
    for camera, image in frame.observation.images.items():
        video: dict[str, Any] = {"video.height": image.shape[0], "video.width": image.shape[1], "video.channels": 3}
        video |= {"video.codec": "av1", "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "has_audio": False}
        features[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": list(image.shape),
            "names": ["height", "width", "channels"],
            "info": video,
        }
    names = recording.settings.first.action.names
    if frame.observation.positions:
        features["observation.state"] = feature("float32", frame.observation.positions)
    features |= {"action": feature("float32", names), "command": feature("float64", names)}
    features |= {"stamp_ns": feature("int64"), "next.done": feature("bool"), "next.success": feature("bool")}
    return features | {f"gate.{name}": feature(dtype) for name, (_, dtype) in _GATE.items()}


def _rows(frames: Iterable[Frame], recording: Recording, span: EpisodeSpan) -> Iterator[Row]:
    """Yield the frames of an episode as the dataset has them; each waits for the next, for the last is marked."""
    size = len(recording.settings.first.action.names)
    state: tuple[str, ...] | None = None
    for frame, following in itertools.pairwise(itertools.chain(frames, [None])):
        assert frame is not None and frame.recorded is not None  # noqa: S101 - None stands last, and spans hold steps
        values, observation = frame.recorded.values, frame.observation
        command, positions = frame.recorded.rows("action", size)[0], observation.positions
        if state is None:
            state = tuple(positions)
        if tuple(positions) != state:
            raise BagError(f"step {frame.recorded.step} knows {sorted(positions)}, and those before {sorted(state)}")
        last = following is None
        row: dict[str, Any] = {
            "task": observation.instruction,
            "stamp_ns": frame.recorded.stamp_ns,
            "action": command.astype(np.float32),
            "command": command,
            "next.done": last,
            "next.success": last and bool(span.success),
            **{f"gate.{name}": values.get(field, np.nan) for name, (field, _) in _GATE.items()},
        }
        row["gate.reuse"] = bool(row["gate.reuse"])
        if positions:
            row["observation.state"] = np.asarray(list(positions.values()), dtype=np.float32)
        yield {f"observation.images.{camera}": image for camera, image in observation.images.items()}, row
