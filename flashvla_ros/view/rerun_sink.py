"""ROS messages in Rerun (https://rerun.io): cameras with kept tokens, robot, command, gate and latency on one timeline.

The same for a recording and for a running node: whoever has messages hands them over, one at a time.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rerun as rr
import rerun.blueprint as rrb
from rerun.urdf import UrdfTree

from flashvla_ros.core.errors import ObservationError, SettingsError
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import Box, ImageArray, IntArray
from flashvla_ros.messages.images import decode_compressed, decode_image
from flashvla_ros.view.overlay import DIM, kept_pixels, token_masks

VisibleBoxes = Callable[[Settings], Callable[[int, int], Box | None]]
_STAMPED = ("Image", "CompressedImage", "GateStatus", "JointState", "PoseStamped")  # by the clock of the observations
_QUALITY = 85  # of a JPEG
_REMEMBERED = 20  # pictures of a camera; a step answers one of them
_LINES = {  # plot: its lines, by the fields of GateStatus
    "angle": {"α": "angle_deg", "ε₁": "max_angle_deg"},
    "overlap": {"φ′": "corrected_overlap", "φ": "overlap", "δ": "delta"},
    "level": {"λ": "permissiveness", "needed": "need", "certified": "certified_level"},
    "latency": {"image to command": "step_s", "model": "inference_s"},
}
_TITLES = {"angle": "Angle α [deg]", "overlap": "Overlap φ", "level": "Permissiveness λ", "latency": "Latency [ms]"}


class RerunSink:
    """Logs messages by their ROS type; those of other types are passed over.

    Args:
        stream: Where to.
        visible_boxes: From the node's settings to what the patches cover of an image of a height and width.

    Attributes:
        cameras: Topic to name; in the order of ``camera.names``, as far as the settings do not say it.
        warnings: What could not be shown.
    """

    def __init__(self, stream: rr.RecordingStream, visible_boxes: VisibleBoxes) -> None:
        self.cameras: dict[str, str] = {}
        self.warnings: list[str] = []
        self._stream = stream
        self._visible_boxes = visible_boxes
        self._visible: Callable[[int, int], Box | None] = lambda _height, _width: None
        self._names: tuple[str, ...] = ()
        self._order: tuple[str, ...] = ()
        self._recent: dict[tuple[str, int], ImageArray] = {}
        self._robot: UrdfTree | None = None
        self._lines: dict[str, list[str]] = {}  # of the plots so far
        self._laid_out: tuple[list[str], list[str], str] | None = None
        self._stamp_ns = 0
        self._waiting: dict[tuple[str, str], tuple[str, str, Any, int]] = {}  # by topic and, of transforms, frame
        self._instruction = ""
        self._handlers: Mapping[str, Callable[[Any], None]] = {  # by type, and the topic's last name where it decides
            "GateStatus": self._gate,
            "PolicyStatus": self._policy,
            "EpisodeStatus": self._episode,
            "TFMessage": self._transforms,
            "JointState": self._joints,
            "PoseStamped end_effector_pose": self._hand,
            "String settings": self._settings,
            "String robot_description": self._description,
            "String instruction": self._instruct,
        }

    def take(self, topic: str, type_name: str, message: Any, time_ns: int) -> None:
        """Log one message at its stamp; one without, or of another clock, at the last one seen or the first to come."""
        kind, name = type_name.rpartition("/")[2], topic.rpartition("/")[2]
        if kind in _STAMPED:
            stamp = message.header.stamp
            self._stamp_ns = stamp.sec * 10**9 + stamp.nanosec or time_ns
        elif not self._stamp_ns:
            moves = {one.child_frame_id: one for one in getattr(message, "transforms", ())}
            parts = {frame: dataclasses.replace(message, transforms=[move]) for frame, move in moves.items()}
            for frame, part in (parts or {"": message}).items():
                self._waiting[topic, frame] = topic, type_name, part, time_ns
            return
        self._stream.set_time("stamp", timestamp=np.datetime64(self._stamp_ns, "ns"))
        waiting, self._waiting = self._waiting, {}
        for earlier in waiting.values():
            self.take(*earlier)
        if handle := self._handlers.get(kind) or self._handlers.get(f"{kind} {name}"):
            handle(message)
        elif topic in self.cameras:
            self._image(topic, message)

    def _image(self, topic: str, message: Any) -> None:
        try:
            image = decode_image(message) if hasattr(message, "encoding") else decode_compressed(message)
        except ObservationError as error:
            self._warn(f"an image on {topic} cannot be shown: {error}")
            return
        camera = self.cameras[topic]
        self._recent[camera, self._stamp_ns] = image
        while len(self._recent) > _REMEMBERED * len(self.cameras):
            del self._recent[next(iter(self._recent))]
        self._log_image(camera, image)

    def _gate(self, status: Any) -> None:
        decision = "REUSE" if status.reason == "reuse" else "FOLLOW" if status.decision else "INFER"
        self._say_state("decision", decision)
        self._say_state("reason", status.reason)
        count = len(status.kept_tokens) or status.visual_tokens
        text = f"step {status.step}: {decision} ({status.reason}), {count}/{status.visual_tokens} tokens"
        self._stream.log("log/gate", rr.TextLog(text, level="DEBUG" if status.decision else "INFO"))
        for plot, lines in _LINES.items():
            if plot == "level" and status.calibration != "online":
                continue
            scale = 1e3 if plot == "latency" else 1.0
            values = [scale * getattr(status, field, math.nan) for field in lines.values()]
            self._plot(plot, list(lines), [value if math.isfinite(value) else math.nan for value in values])
        row = np.asarray(status.action)[: status.action_size]
        names = self._names if len(self._names) == len(row) else map(str, range(len(row)))
        self._plot("command", list(names), row)
        self._show()
        self._tokens(np.asarray(status.kept_tokens, dtype=np.int64), status.visual_tokens)

    def _tokens(self, kept: IntArray, count: int) -> None:
        """Show the pictures that a step answered again, with the pruned patches dark."""
        cameras = self._in_order()
        masks = token_masks(kept if len(kept) else None, count, max(len(cameras), 1))
        for camera, mask in zip(cameras, masks, strict=False):
            stamps = [stamp for name, stamp in self._recent if name == camera and stamp <= self._stamp_ns]
            if mask is None or not stamps:
                continue
            image = self._recent[camera, max(stamps)]  # a step is stamped as the last of its pictures
            height, width, _ = image.shape
            size = width, height
            bright = kept_pixels(mask, self._visible(height, width), image=size, size=size)
            self._log_image(camera, (image * np.where(bright, 1.0, DIM)[..., None]).astype(np.uint8))

    def _in_order(self) -> list[str]:
        return sorted(self.cameras.values(), key=[*self._order, *self.cameras.values()].index)

    def _log_image(self, camera: str, image: ImageArray) -> None:
        self._stream.log(f"cameras/{camera}", rr.Image(image).compress(jpeg_quality=_QUALITY))

    def _say_state(self, entity: str, state: str) -> None:
        self._stream.log(f"states/{entity}", rr.StateChange(state=state))

    def _plot(self, name: str, lines: list[str], values: Any) -> None:
        if self._lines.get(name) != lines:
            self._lines[name] = lines
            self._stream.log(f"plots/{name}", rr.SeriesLines(names=lines), static=True)
        self._stream.log(f"plots/{name}", rr.Scalars(values))

    def _policy(self, status: Any) -> None:
        self._say_state("node", f"{status.state} {status.stop_reason}".strip())

    def _episode(self, status: Any) -> None:
        how = ("started", "changed", f"ended, {'success' if status.success else 'failed'}")[status.event]
        self._stream.log("log/episode", rr.TextLog(f"episode {status.episode} {how}: {status.instruction}"))

    def _instruct(self, message: Any) -> None:
        if message.data != self._instruction:  # robots repeat it
            self._instruction = message.data
            self._stream.log("log/instruction", rr.TextLog(message.data))

    def _settings(self, message: Any) -> None:
        try:
            settings = Provenance.from_json(message.data).settings
        except SettingsError as error:  # of another version
            self._warn(f"names of actions and cameras are unknown: {error}")
            return
        self._names = settings.action.names
        self._order = settings.camera.names
        self._visible = self._visible_boxes(settings)

    def _description(self, message: Any) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "robot.urdf"
                path.write_text(message.data, encoding="utf-8")
                self._robot = UrdfTree.from_file_path(path, entity_path_prefix="robot")
            self._robot.log_urdf_to_recording(self._stream)
        except Exception as error:  # noqa: BLE001 - whatever its parser finds wrong with it
            self._warn(f"the robot's description cannot be shown: {error}")

    def _joints(self, state: Any) -> None:
        positions = dict(zip(state.name, state.position, strict=False))
        for joint in self._robot.joints() if self._robot else ():
            if joint.name in positions:
                moved = joint.compute_transform(float(positions[joint.name]), clamp=False)
                self._stream.log(f"frames/{joint.child_link}", moved)

    def _transforms(self, message: Any) -> None:
        for stamped in message.transforms:
            move, turn = stamped.transform.translation, stamped.transform.rotation
            moved = rr.Transform3D(
                translation=[move.x, move.y, move.z],
                quaternion=[turn.x, turn.y, turn.z, turn.w],
                parent_frame=stamped.header.frame_id,
                child_frame=stamped.child_frame_id,
            )
            self._stream.log(f"frames/{stamped.child_frame_id}", moved)

    def _hand(self, message: Any) -> None:
        place = message.pose.position
        moved = rr.Transform3D(translation=[place.x, place.y, place.z], parent_frame=message.header.frame_id or None)
        self._stream.log("hand", moved, rr.Points3D([[0.0, 0.0, 0.0]], radii=0.03, colors=[(230, 90, 60)]))

    def _warn(self, line: str) -> None:
        if line not in self.warnings:
            self.warnings.append(line)

    def _show(self) -> None:
        """Lay the views out again where there is another camera or plot, or the robot."""
        root = self._robot.root_link().name if self._robot else ""
        plots = [name for name in _TITLES if name in self._lines]
        shown = self._in_order(), plots, root
        if shown != self._laid_out:
            self._laid_out = shown
            self._stream.send_blueprint(layout(*shown))


def layout(cameras: Sequence[str], plots: Sequence[str], root: str = "") -> rrb.Blueprint:
    """Return the arrangement of the views.

    Args:
        cameras: Names of the cameras.
        plots: Those of the gate and of the time.
        root: Frame of the robot's first link; empty: there is no robot to show.
    """
    views: list[Any] = [rrb.Spatial2DView(origin=f"cameras/{name}", name=name) for name in cameras]
    if root:
        frame = rrb.SpatialInformation(target_frame=root)
        views.append(
            rrb.Spatial3DView(origin="/", contents=["robot/**", "hand"], name="Robot", spatial_information=frame)
        )
    log = rrb.TextLogView(origin="log", name="Log")
    drawn = [rrb.TimeSeriesView(origin=f"plots/{name}", name=_TITLES[name]) for name in plots]
    command = rrb.TimeSeriesView(origin="plots/command", name="Command, after safety")
    decisions = rrb.StateTimelineView(origin="states", name="Gate and node")
    left = rrb.Vertical(*views, log, row_shares=[3.0] * len(views) + [2.0])
    right = rrb.Vertical(decisions, rrb.Grid(*drawn), command, row_shares=[2.0, 4.0, 2.0])
    return rrb.Blueprint(
        rrb.Horizontal(left, right, column_shares=[2.0, 3.0]),
        rrb.TimePanel(state="collapsed", timeline="stamp", play_state="following"),
        collapse_panels=True,
    )
