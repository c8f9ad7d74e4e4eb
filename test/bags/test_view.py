"""A recording in Rerun: what is written, read back with Rerun's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bag_factory import (
    EPISODE,
    GATE,
    IMAGE,
    START_NS,
    STORE,
    STRING,
    header,
    message,
    picture,
    raw_image,
    text,
    write_bag,
)

from flashvla_ros import __main__ as cli
from flashvla_ros.bags.definitions import message_definition
from flashvla_ros.bags.recorder import LiveTopics
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.settings import Settings
from flashvla_ros.view.overlay import DIM
from flashvla_ros.vla.checkpoint import load_config
from flashvla_ros.vla.processor import ImageProcessor

TF = "tf2_msgs/msg/TFMessage"
SIDE, STEPS, PERIOD_NS = 4, 3, 10**8
KEPT = np.asarray([0, 5, 15], dtype=np.int32)
URDF = """<robot name="arm"><link name="base"/><link name="hand"/><joint name="turn" type="revolute">
<parent link="base"/><child link="hand"/><origin xyz="0 0 1"/><axis xyz="0 0 1"/>
<limit lower="-1" upper="1" effort="1" velocity="1"/></joint></robot>"""


def write_run(path: Path) -> Path:
    messages: list[tuple[str, str, int, Any]] = [
        ("/flashvla/settings", STRING, START_NS - 30, text(Provenance(Settings(), {}, {}).to_json())),
        ("/robot_description", STRING, START_NS - 20, text(URDF)),
        ("/episode", EPISODE, START_NS - 10, message(EPISODE, START_NS - 10, event=0, instruction="push")),
    ]
    joints = STORE.types["sensor_msgs/msg/JointState"]
    for step in range(STEPS):
        at_ns = START_NS + step * PERIOD_NS
        moved = joints(header(at_ns), ["turn"], np.asarray([0.1 * step]), np.empty(0), np.empty(0))
        status = message(
            *(GATE, at_ns),
            step=step,
            reason="reuse" if step == 1 else "angle",
            decision=int(step == 1),
            angle_deg=float(step),
            kept_tokens=KEPT if step < 2 else np.empty(0, dtype=np.int32),
            visual_tokens=SIDE * SIDE,
            action=np.full(len(Settings().action.names), 0.5 + step),
            action_size=len(Settings().action.names),
            step_s=0.02,
        )
        messages += [
            ("/joint_states", "sensor_msgs/msg/JointState", at_ns, moved),
            ("/image", IMAGE, at_ns, raw_image(picture(step), at_ns)),
            ("/flashvla/gate", GATE, at_ns + 1, status),
        ]
    return write_bag(path, messages)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """Entity to its rows: stamp, and components by their short names."""
    chunk = pytest.importorskip("rerun.chunk", reason="the extra `rerun` is not installed")
    folder = tmp_path_factory.mktemp("view")
    assert cli.main(["view", str(write_run(folder / "run")), "--save", str(folder / "run.rrd")]) == 0
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for part in chunk.RrdReader(folder / "run.rrd").stream():
        table = part.to_record_batch()
        stamps = table["stamp"].cast("int64").to_pylist() if "stamp" in table.schema.names else [0] * len(table)
        kept = table.select([name for name in table.schema.names if ":" in name])
        for stamp, row in zip(stamps, kept.to_pylist(), strict=True):
            values = {name.rpartition(":")[2]: value for name, value in row.items()}
            found.setdefault(part.entity_path, []).append((stamp, values))
    return {entity: sorted(rows, key=lambda row: row[0]) for entity, rows in found.items()}


def test_the_lines_of_a_plot_are_those_of_the_gate(logged: Any) -> None:
    rows = [row for row in logged["/plots/angle"] if row[0]]
    assert [stamp for stamp, _ in rows] == [START_NS + step * PERIOD_NS for step in range(STEPS)]
    assert [row["scalars"][0] for _, row in rows] == [0.0, 1.0, 2.0]
    assert [row["names"] for stamp, row in logged["/plots/angle"] if not stamp] == [["α", "ε₁"]]
    assert logged["/plots/latency"][-1][1]["scalars"] == [20.0, 0.0]
    assert "/plots/level" not in logged  # calibration is off


def test_commands_have_the_names_of_the_settings(logged: Any) -> None:
    assert logged["/plots/command"][0][1]["names"] == list(Settings().action.names)
    assert logged["/plots/command"][-1][1]["scalars"] == [2.5] * len(Settings().action.names)


def test_decisions_and_reasons_are_states(logged: Any) -> None:
    assert [row["state"] for _, row in logged["/states/decision"]] == [["INFER"], ["REUSE"], ["INFER"]]
    assert [row["state"] for _, row in logged["/states/reason"]] == [["angle"], ["reuse"], ["angle"]]
    assert "push" in logged["/log/episode"][0][1]["text"][0]


def test_pruned_patches_are_dark_where_the_model_saw_them(logged: Any) -> None:
    """The demo policy squeezes its images, so a patch covers a quarter of each side."""
    shape = picture(0).shape[:2]
    folder = share_path("models", "demo")
    assert ImageProcessor.from_folder(folder, load_config(folder)).visible_box(*shape) == (0, 0, shape[1], shape[0])
    kept = np.zeros((SIDE, SIDE), dtype=bool)
    kept.ravel()[KEPT] = True
    bright = kept.repeat(shape[0] // SIDE, axis=0).repeat(shape[1] // SIDE, axis=1)
    shown = shown_at(logged, 0)
    assert np.abs(shown - picture(0))[bright].mean() < 12.0
    assert np.abs(shown - DIM * picture(0))[~bright].mean() < 12.0


def shown_at(logged: Any, step: int) -> np.ndarray[Any, Any]:
    """The last picture that was logged at a step; a JPEG."""
    rows = [row for stamp, row in logged["/cameras/image"] if stamp == START_NS + step * PERIOD_NS]
    return cv2.imdecode(np.asarray(rows[-1]["blob"][0], dtype=np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(float)


def test_a_picture_of_which_nothing_was_pruned_is_the_recorded_one(logged: Any) -> None:
    assert np.abs(shown_at(logged, 2) - picture(2)).mean() < 8.0


@pytest.fixture
def sink() -> Any:
    rr = pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    from flashvla_ros.view.rerun_sink import RerunSink

    return RerunSink(rr.RecordingStream("test"), lambda _settings: lambda _height, _width: None)


def test_a_camera_that_comes_after_the_settings_has_its_own_tokens(sink: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, Any]] = []
    settings = Settings().with_values({"camera.names": ("wrist", "front")})
    sink.take("/flashvla/gate", GATE, message(GATE, START_NS, action=np.zeros(1), action_size=1), START_NS)
    sink.take("/flashvla/settings", STRING, text(Provenance(settings, {}, {}).to_json()), START_NS)
    sink.cameras = {"/front": "front", "/wrist": "wrist"}
    for topic in sink.cameras:
        sink.take(topic, IMAGE, raw_image(picture(0), START_NS), START_NS)
    monkeypatch.setattr(sink, "_log_image", lambda camera, image: shown.append((camera, image)))
    status = message(GATE, START_NS, kept_tokens=KEPT[2:], visual_tokens=32, action=np.zeros(1), action_size=1)
    sink.take("/flashvla/gate", GATE, status, START_NS)
    bright = {camera: bool((image[-1, -1] == picture(0)[-1, -1]).all()) for camera, image in shown}
    assert bright == {"wrist": True, "front": False}  # token 15 of 32 is the last one of the first camera


def transforms(**frames: float) -> Any:
    """A message with the frames at these x."""
    kinds = STORE.types
    turn = kinds["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
    moves = {frame: kinds["geometry_msgs/msg/Vector3"](x, 0.0, 0.0) for frame, x in frames.items()}
    places = {frame: kinds["geometry_msgs/msg/Transform"](move, turn) for frame, move in moves.items()}
    stamped = kinds["geometry_msgs/msg/TransformStamped"]
    return kinds[TF]([stamped(header(0), frame, place) for frame, place in places.items()])


def test_before_the_first_stamp_the_last_of_each_topic_and_frame_waits(sink: Any) -> None:
    moved: dict[str, list[float]] = {}

    def move(seen: Any) -> None:
        for stamped in seen.transforms:
            moved.setdefault(stamped.child_frame_id, []).append(stamped.transform.translation.x)

    sink._handlers = {"TFMessage": move}
    for tick in range(100):
        sink.take("/tf", TF, transforms(hand=tick) if tick % 2 else transforms(arm=tick, hand=tick), tick)
        sink.take("/instruction", STRING, text("push"), tick)
    for frame in ("camera", "table"):  # each from a broadcaster of its own, and said once
        sink.take("/tf_static", TF, transforms(**{frame: 1.0}), 0)
    assert len(sink._waiting) == 5
    sink.take("/flashvla/gate", GATE, message(GATE, START_NS), START_NS)
    assert moved == {"arm": [98], "hand": [99], "camera": [1.0], "table": [1.0]}


def test_every_camera_is_darkened_whose_picture_came_before_the_step(
    sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step is stamped as the picture that completed it; those of the other cameras are a little older."""
    shown: list[tuple[str, Any]] = []
    monkeypatch.setattr(sink, "_log_image", lambda camera, image: shown.append((camera, image)))
    sink.cameras = {"/front": "front", "/wrist": "wrist", "/late": "late"}
    pictures = [("/front", 0), ("/front", 1), ("/wrist", 2), ("/front", 3), ("/late", 3)]
    for number, (topic, tick) in enumerate(pictures):
        sink.take(topic, IMAGE, raw_image(picture(number), START_NS + tick), START_NS + tick)
    shown.clear()
    patches = 3 * SIDE * SIDE
    status = message(GATE, START_NS + 2, kept_tokens=KEPT[:1], visual_tokens=patches, action=np.zeros(1), action_size=1)
    sink.take("/flashvla/gate", GATE, status, START_NS + 4)
    assert [camera for camera, _ in shown] == ["front", "wrist"]
    for (_, image), number in zip(shown, (1, 2), strict=True):
        np.testing.assert_array_equal(image[-1, -1], (picture(number)[-1, -1] * DIM).astype(np.uint8))
    np.testing.assert_array_equal(shown[0][1][0, 0], picture(1)[0, 0])  # which was kept


def test_the_robot_moves_by_its_joints(logged: Any) -> None:
    turns = [row["quaternion"][0][2] for stamp, row in logged["/frames/hand"] if stamp >= START_NS]
    assert turns == pytest.approx([np.sin(0.05 * step) for step in range(STEPS)], abs=1e-6)


class Taken:
    """Takes the place of what draws."""

    def __init__(self) -> None:
        self.cameras: dict[str, str] = {}
        self.messages: list[tuple[str, str, Any]] = []

    def take(self, topic: str, kind: str, seen: Any, _time_ns: int) -> None:
        self.messages.append((topic, kind, seen))


def test_live_messages_are_decoded_and_cameras_have_the_names_of_their_topics() -> None:
    sink = Taken()
    live = LiveTopics(sink)
    for name in ("/image", "/left/image/compressed", "/camera/color"):
        live.add_topic(name, IMAGE, *message_definition(IMAGE), [])
    assert sink.cameras == {"/camera/color": "color", "/image": "image", "/left/image/compressed": "left"}
    words = live.add_topic("/instruction", STRING, *message_definition(STRING), [])
    live.write(words, 7, bytes(STORE.serialize_cdr(text("push"), STRING)))
    [(topic, kind, seen)] = sink.messages
    assert (topic, kind, seen.data) == ("/instruction", STRING, "push")


@pytest.mark.parametrize("order", [1, -1])
def test_live_cameras_have_names_of_their_own_whichever_is_found_first(order: int) -> None:
    sink = Taken()
    live = LiveTopics(sink)
    found = ["/front/image_raw", "/wrist/image_raw", "/a/color/image_raw", "/b/color/image_raw", "/b/color/image"]
    for name in found[::order]:
        live.add_topic(name, IMAGE, *message_definition(IMAGE), [])
    assert list(sink.cameras.items()) == [
        ("/a/color/image_raw", "a/color/image_raw"),
        ("/b/color/image", "b/color/image"),
        ("/b/color/image_raw", "b/color/image_raw"),
        ("/front/image_raw", "front"),
        ("/wrist/image_raw", "wrist"),
    ]


@pytest.mark.parametrize(
    ("arguments", "why"), [([], "a BAG, or --live"), (["bag", "--live"], "not both"), (["none", "--save", "x"], "none")]
)
def test_what_cannot_be_shown_is_refused_in_a_line(
    arguments: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    if "none" in arguments:
        pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["view", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_without_rerun_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rerun", None)
    assert cli.main(["view", "bag", "--save", "x.rrd"]) == 2
    assert "pip install 'rerun-sdk" in capsys.readouterr().err


def test_without_a_display_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert cli.main(["view", "bag"]) == 2
    assert "--save FILE.rrd" in capsys.readouterr().err
