"""The node's callbacks and a bag of the same messages give the same observations."""

from __future__ import annotations

import array
import dataclasses
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bag_factory import IMAGE, START_NS, STORE, STRING, write_bag
from fakes import SPEC, ScriptedPolicy
from hypothesis import given, settings
from hypothesis import strategies as st

rclpy = pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time  # noqa: E402
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion  # noqa: E402
from rclpy.context import Context  # noqa: E402
from rclpy.lifecycle import LifecycleNode  # noqa: E402
from sensor_msgs.msg import Image, JointState  # noqa: E402
from std_msgs.msg import Header, String  # noqa: E402

from flashvla_ros.bags.frames import Frames  # noqa: E402
from flashvla_ros.bags.reader import open_bag  # noqa: E402
from flashvla_ros.bags.topics import Topics  # noqa: E402
from flashvla_ros.control.stepper import Stepper  # noqa: E402
from flashvla_ros.control.watchdog import Watchdog  # noqa: E402
from flashvla_ros.control.worker import Worker  # noqa: E402
from flashvla_ros.core.settings import Settings  # noqa: E402
from flashvla_ros.core.types import Observation  # noqa: E402
from flashvla_ros.nodes.inputs import Inputs  # noqa: E402
from flashvla_ros.nodes.logs import Rejections  # noqa: E402

MS = 10**6
SETTINGS = Settings().with_values(
    {
        "camera.names": ("front", "wrist"),
        "action.names": ("j1", "j2", "gripper"),
        "action.kinds": ("absolute", "absolute", "gripper"),
        "control.frozen_image_s": 0.0,
        "control.max_image_age_s": 0.0,  # stamps of the test's own clock
    }
)
TOPICS = Topics(
    {"front": "/front/image", "wrist": "/wrist/image"},
    instruction="/instruction",
    joint_states="/joint_states",
    end_effector_pose="/end_effector_pose",
    emergency_stop=None,
    gate=None,
    settings=None,
)
KINDS = {
    "/instruction": STRING,
    "/joint_states": "sensor_msgs/msg/JointState",
    "/end_effector_pose": "geometry_msgs/msg/PoseStamped",
    **dict.fromkeys(TOPICS.images.values(), IMAGE),
}


@dataclasses.dataclass(frozen=True)
class Sent:
    """A message, its topic, and when it arrives and is recorded [ns]."""

    topic: str
    message: Any
    time_ns: int


def header(stamp_ns: int, frame_id: str = "") -> Header:
    return Header(stamp=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9), frame_id=frame_id)


def image(camera: str, time_ns: int, level: int = 9, encoding: str = "rgb8", lag_ns: int = 0) -> Sent:
    """A picture that arrives `lag_ns` after its stamp."""
    message = Image(header=header(time_ns - lag_ns), height=2, width=2, step=6, encoding=encoding)
    message.data = bytes([level] * 12)
    return Sent(f"/{camera}/image", message, time_ns)


def joints(names: Sequence[str], positions: Sequence[float], time_ns: int) -> Sent:
    return Sent("/joint_states", JointState(name=list(names), position=list(positions)), time_ns)


def say(text: str, time_ns: int) -> Sent:
    return Sent("/instruction", String(data=text), time_ns)


def pose(x: float, w: float, frame_id: str, time_ns: int) -> Sent:
    place = Pose(position=Point(x=x), orientation=Quaternion(w=w))
    return Sent("/end_effector_pose", PoseStamped(header=header(time_ns, frame_id), pose=place), time_ns)


class Answering(Worker):
    """A worker whose observations are looked at and not answered."""

    def post(self, observation: Observation) -> None:
        self.posted = [*getattr(self, "posted", []), observation]


class Live:
    """The node's subscriptions on a clock of the test's own."""

    def __init__(self) -> None:
        self._context = Context()
        rclpy.init(context=self._context)
        self.node = LifecycleNode("flashvla", context=self._context)

    def hear(self, sent: Sequence[Sent]) -> list[Observation]:
        """Call the callbacks that the subscriptions call."""
        now_s = 0.0
        inputs = Inputs(self.node, lambda: SETTINGS, Rejections(print), clock=lambda: now_s)
        worker = Answering(
            Stepper(ScriptedPolicy(), SPEC),
            lambda: SETTINGS,
            on_step=pytest.fail,
            on_stop=pytest.fail,
            on_fault=pytest.fail,
        )
        inputs.start(worker, Watchdog(worker))
        heard = (*inputs._subscriptions, *inputs._cameras)
        callbacks = {subscription.topic_name: subscription.callback for subscription in heard}
        for each in sent:
            now_s = each.time_ns * 1e-9
            callbacks[each.topic](each.message, *([{}] if each.topic.endswith("/image") else []))
        inputs.close()
        return getattr(worker, "posted", [])

    def close(self) -> None:
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    live = Live()
    yield live
    live.close()


def of_rosbags(value: Any) -> Any:
    """A message of rclpy as one of rosbags, which writes it."""
    if isinstance(value, array.array):
        return np.array(value)
    if not hasattr(value, "get_fields_and_field_types"):
        return value
    kind = f"{type(value).__module__.split('.')[0]}/msg/{type(value).__name__}"
    return STORE.types[kind](*(of_rosbags(getattr(value, name)) for name in value.get_fields_and_field_types()))


def recorded(sent: Sequence[Sent], folder: Path) -> list[Observation]:
    """Write the messages into a bag and read it."""
    messages = [(each.topic, KINDS[each.topic], each.time_ns, of_rosbags(each.message)) for each in sent]
    with open_bag(write_bag(folder / "bag", messages)) as bag:
        return [frame.observation for frame in Frames(bag, TOPICS, SETTINGS)]


def check_same(ours: Sequence[Observation], theirs: Sequence[Observation]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.images) == list(other.images)
        assert all(np.array_equal(one.images[camera], other.images[camera]) for camera in one.images)
        for name in ("instruction", "stamp_s", "joint_positions", "pose"):
            assert getattr(one, name) == getattr(other, name), name


def both(live: Live, sent: Sequence[Sent], folder: Path) -> list[Observation]:
    """The observations of a robot that heard these messages, which are those of their bag."""
    heard = live.hear(sent)
    check_same(heard, recorded(sent, folder))
    return heard


def scene(*middle: Sent) -> list[Sent]:
    """Two cameras and a task, something happens, and the first camera looks again."""
    before = [say("push", START_NS), image("wrist", START_NS + MS, 1), image("front", START_NS + 2 * MS, 2)]
    return [*before, *middle, image("front", START_NS + 100 * MS, 3)]


LATER_NS = START_NS + 50 * MS


def test_a_joint_that_is_not_finite_costs_nothing_to_the_others(live, tmp_path):
    *_, last = both(live, scene(joints(["j1", "j2"], [0.5, math.nan], LATER_NS)), tmp_path)
    assert last.joint_positions == {"j1": 0.5}


def test_joints_that_the_action_does_not_name_are_left_alone(live, tmp_path):
    sent = joints(["wheel", "j2", "caster"], [math.nan, 0.25, 7.0], LATER_NS)
    *_, last = both(live, scene(sent), tmp_path)
    assert last.joint_positions == {"j2": 0.25}


@pytest.mark.parametrize("positions", [[0.1], [0.1, 0.2, 0.3], []])
def test_lists_of_unequal_length_say_nothing_of_any_joint(live, tmp_path, positions):
    *_, last = both(live, scene(joints(["j1", "j2"], positions, LATER_NS)), tmp_path)
    assert last.joint_positions == {}


@pytest.mark.parametrize("text", ["x" * 2000, "", "  "])
def test_what_is_no_instruction_changes_nothing(live, tmp_path, text):
    *_, last = both(live, scene(say(text, LATER_NS)), tmp_path)
    assert last.instruction == "push"


def test_an_unusable_image_of_the_second_camera_leaves_the_one_before_it(live, tmp_path):
    *_, last = both(live, scene(image("wrist", LATER_NS, 8, encoding="32FC1")), tmp_path)
    assert {camera: int(picture[0, 0, 0]) for camera, picture in last.images.items()} == {"front": 3, "wrist": 1}


def test_unusable_images_are_silence(live, tmp_path):
    bad = [image("wrist", START_NS + n * 400 * MS, encoding="32FC1") for n in (1, 2)]
    late = image("front", START_NS + 801 * MS)
    observations = both(live, [*scene(), *bad, late], tmp_path)
    assert len(observations) == 2  # none with a picture of the wrist that is 0.8 s old


@pytest.mark.parametrize("camera", ["front", "wrist"])
@pytest.mark.parametrize("lag_ms", [48, 49, 500])
def test_an_image_that_repeats_or_comes_late_is_dropped(live, tmp_path, camera, lag_ms):
    """The images before it have the stamps 1 ms and 2 ms after the start."""
    lag_ms += camera == "wrist"
    observations = both(live, scene(image(camera, LATER_NS, 8, lag_ns=lag_ms * MS)), tmp_path)
    assert [int(observation.images[camera][0, 0, 0]) for observation in observations] == (
        [2, 3] if camera == "front" else [1, 1]
    )


def test_a_clock_that_is_set_back_goes_on_from_there(live, tmp_path):
    back = [image("front", START_NS + n * 200 * MS, 10 + n, lag_ns=5 * 10**9) for n in (1, 2)]
    observations = both(live, [*scene(), *back], tmp_path)
    assert [int(observation.images["front"][0, 0, 0]) for observation in observations] == [2, 3, 11, 12]


def test_a_pose_in_another_frame_or_without_a_rotation_is_refused(live, tmp_path):
    good = pose(0.1, 1.0, "base_link", LATER_NS)
    bad = [pose(0.2, 1.0, "map", LATER_NS + MS), pose(0.3, 0.0, "", LATER_NS + 2 * MS)]
    *_, last = both(live, scene(good, *bad), tmp_path)
    assert last.pose["x"] == 0.1


NUMBERS = st.sampled_from([0.0, -1.5, 3.25, math.nan, math.inf])
EVENTS = st.one_of(
    st.tuples(
        st.just(image),
        st.sampled_from(["front", "front", "wrist"]),
        st.integers(0, 255),
        st.sampled_from(["rgb8", "rgb8", "rgb8", "bgr8", "mono8", "32FC1"]),
        st.sampled_from([0, 0, 0, 10 * MS, 300 * MS, 2 * 10**9]),
    ),
    st.tuples(st.just(say), st.sampled_from(["push", "  pull ", "", " ", "ä" * 1000, "y" * 1001, "y" * 2000])),
    st.tuples(
        st.just(joints),
        st.lists(st.sampled_from(["j1", "j2", "gripper", "wheel", ""]), max_size=4),
        st.lists(NUMBERS, max_size=4),
    ),
    st.tuples(
        st.just(pose), NUMBERS, st.sampled_from([1.0, 0.0, 2.0, math.nan]), st.sampled_from(["", "base_link", "map"])
    ),
)
PAUSES_NS = st.sampled_from([MS, 10 * MS, 100 * MS, 300 * MS, 600 * MS, 1100 * MS])


def stream(events: Sequence[tuple[int, tuple[Any, ...]]]) -> list[Sent]:
    """Messages at growing times; a pause before each."""
    times = itertools.accumulate((pause_ns for pause_ns, _ in events), initial=START_NS + 200 * MS)
    sent = []
    for time_ns, (_, (make, *values)) in zip(itertools.islice(times, 1, None), events, strict=True):
        if make is image:
            camera, level, encoding, lag_ns = values
            sent.append(image(camera, time_ns, level, encoding, lag_ns))
        else:
            sent.append(make(*values, time_ns))
    return sent


@settings(max_examples=20, deadline=None)
@given(events=st.lists(st.tuples(PAUSES_NS, EVENTS), max_size=30))
def test_the_same_messages_make_the_same_observations_live_and_from_a_bag(live, events):
    with tempfile.TemporaryDirectory() as folder:
        both(live, [*scene(), *stream(events)], Path(folder))
