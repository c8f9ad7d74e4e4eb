"""Every command type through the real node with the configuration that docs/safety.md gives for it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Duration, Time
from fakes import ScriptedPolicy
from geometry_msgs.msg import PoseStamped
from policy_bench import PolicyBench
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from flashvla_ros.cli.parameter_files import read_parameters
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.doctor.finding import Level
from flashvla_ros.doctor.settings import check_settings
from flashvla_ros.nodes import interfaces

CONFIG = Path(__file__).parents[2] / "config"
UR = ["shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint"]
NUMBERED = [f"joint{number}" for number in range(1, 7)]
FULL_SPEED = {"control__speed_scale": 1.0, "control__ramp_s": 0.0, "control__image_timeout_s": 10.0}
MakeBench = Callable[..., PolicyBench]


@pytest.fixture
def make() -> Iterator[MakeBench]:
    benches: list[PolicyBench] = []

    def make(config: str, *actions: Any, joints: list[str] | None = None, **parameters: Any) -> PolicyBench:
        policy = ScriptedPolicy([actions] if np.ndim(actions) > 1 else actions, scale=1.0)
        files = [CONFIG / config] if config else []
        benches.append(PolicyBench(policy, files=files, **{**FULL_SPEED, **parameters}))
        if joints:
            describe(benches[-1], urdf(joints))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def urdf(joints: list[str], lower: float = -2.0, upper: float = 2.0, velocity: float = 3.0) -> str:
    limit = f'<limit lower="{lower}" upper="{upper}" velocity="{velocity}" effort="10"/>'
    rows = "".join(f'<joint name="{name}" type="revolute">{limit}</joint>' for name in joints)
    return f'<?xml version="1.0"?><robot name="arm"><link name="base"/>{rows}<joint name="f" type="fixed"/></robot>'


def describe(bench: PolicyBench, text: str) -> None:
    topic = interfaces.ROBOT_DESCRIPTION
    publisher = bench.robot.create_publisher(topic.type, topic.name, topic.qos)
    publisher.publish(String(data=text))


@contextmanager
def moving_joints(bench: PolicyBench, names: list[str]) -> Iterator[None]:
    """A robot that goes on reporting its joints while the node is being configured."""
    done = threading.Event()

    def publish() -> None:
        while not done.wait(0.02):
            for name in names:  # one message each, as where several drivers share the topic
                bench.joint_states.publish(JointState(name=[name], position=[0.0]))

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def start(bench: PolicyBench, **positions: float) -> PolicyBench:
    bench.start()
    if positions:
        bench.measure(**positions)
    return bench


def at(bench: PolicyBench, x: float, y: float, z: float, frame: str = "base_link") -> None:
    """Publish a pose that looks down, and wait until the node has heard it."""
    message = PoseStamped()
    message.header.frame_id = frame
    position, turn = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = x, y, z
    turn.x, turn.w = 2.0, 0.0  # of any length
    bench.until(bench.pose.get_subscription_count, "the reader of the pose")
    bench.pose.publish(message)
    if frame == "base_link":
        told = {"x": x, "y": y, "z": z}
        bench.until(lambda: told.items() <= bench.node._inputs.positions().items(), "the pose")


# One configuration for each controller.


def test_servo_twist(make):
    bench = start(make("servo_twist.yaml", [0.01, -0.004, 0.5, 0.02, 0.0, -0.5, 1.0]))
    bench.step()
    twist = bench.commands[0].twist
    assert bench.commands[0].header.frame_id == "base_link"
    assert (twist.linear.x, twist.linear.y, twist.linear.z) == pytest.approx((0.05, -0.02, 0.05))  # z: max_step / dt_s
    assert (twist.angular.x, twist.angular.z) == pytest.approx((0.1, -0.25))
    assert bench.grippers[0].data == 1.0


def test_cartesian_pose(make):
    bench = start(make("cartesian_pose.yaml", [0.5, 0.1, 0.3, math.pi, 0.0, 0.2, 1.0]))
    at(bench, 0.49, 0.1, 0.3)
    bench.step()
    pose = bench.commands[0].pose
    assert bench.commands[0].header.frame_id == "base_link"
    assert (pose.position.x, pose.position.y, pose.position.z) == pytest.approx((0.5, 0.1, 0.3))
    turn = pose.orientation
    assert math.hypot(turn.x, turn.y, turn.z, turn.w) == pytest.approx(1.0)
    assert 2 * math.atan2(turn.y, turn.x) == pytest.approx(0.1)  # yaw is held to limits.max_step
    assert bench.gates[0].clamped == 1


def test_a_pose_stops_where_the_end_effector_is(make):
    bench = start(make("cartesian_pose.yaml", [0.5, 0.1, 0.3, math.pi, 0.0, 0.0, 1.0], control__max_deviation=[]))
    at(bench, 0.49, 0.1, 0.3)
    bench.step()
    at(bench, 0.4, 0.12, 0.31)
    bench.node.trigger_deactivate()
    bench.until(lambda: len(bench.commands) == 2, "the stop action")
    position, turn = bench.commands[1].pose.position, bench.commands[1].pose.orientation
    assert (position.x, position.y, position.z) == pytest.approx((0.4, 0.12, 0.31))
    assert (abs(turn.x), turn.y, turn.z) == pytest.approx((1.0, 0.0, 0.0), abs=1e-9)


def test_joint_trajectory(make):
    chunk = [[0.1, 0.2, 0.3, 0.4, 0.5, 9.0, 1.0], [0.2, 0.2, 0.3, 0.4, 0.5, 9.0, 1.0]]
    bench = start(make("joint_trajectory.yaml", *chunk, joints=UR), **dict.fromkeys(UR, 0.0))
    bench.step()
    [command] = bench.commands
    assert command.joint_names == UR
    assert command.header.stamp == Time()  # from now on
    assert [list(point.positions) for point in command.points] == [
        pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3, 0.3]),  # from 0, at the URDF's 3 rad/s over 0.1 s
        pytest.approx([0.2, 0.2, 0.3, 0.4, 0.5, 0.6]),
    ]
    assert [point.time_from_start for point in command.points] == [Duration(nanosec=10**8), Duration(nanosec=2 * 10**8)]
    assert bench.grippers[0].data == 1.0
    values = {value.key: value.value for value in (bench.report(), bench.diagnostics[-1].status[0].values)[1]}
    assert (values["clamped.wrist_3_joint"], values["clamped.elbow_joint"]) == ("1", "0")
    assert bench.node.settings.limits.joint_upper[:6] == (2.0,) * 6


@pytest.mark.parametrize(("kind", "motion"), [("delta", 0.1), ("velocity", 1.0)])
def test_a_trajectory_of_motions_starts_where_the_joints_are_and_stops_there(make, kind, motion):
    bench = make(
        "",
        *[[motion], [motion]],
        command__type="JointTrajectory",
        action__names=["elbow"],
        action__kinds=[kind],
    )
    start(bench, elbow=0.5)
    bench.step()
    assert [point.positions[0] for point in bench.commands[0].points] == pytest.approx([0.6, 0.7])
    bench.measure(elbow=0.55)
    bench.node.trigger_deactivate()
    bench.until(lambda: len(bench.commands) == 2, "the stop action")
    assert [list(point.positions) for point in bench.commands[1].points] == [[0.55]]


def test_without_joint_states_motions_of_joints_are_not_commanded(make):
    bench = start(make("", [0.1], command__type="JointTrajectory", action__names=["elbow"], action__kinds=["delta"]))
    bench.show()
    bench.until(lambda: bench.logged("stopped, fault"), "the stop")
    assert "joint_states does not report ['elbow']" in bench.report().stop_reason
    assert not bench.commands
    bench.measure(elbow=0.5)
    bench.step()
    assert bench.report().state == "running"


def test_while_two_nodes_report_a_joint_the_robot_is_stopped_and_not_sent_to_either_place(make):
    """Zeros of a joint_state_publisher beside the driver's report: a stop must not send the arm to zero."""
    bench = make(
        "", [0.4], command__type="JointTrajectory", action__names=["elbow"], action__kinds=["absolute"],
        control__image_timeout_s=0.5,
    )  # fmt: skip
    start(bench, elbow=0.4)
    bench.step()
    said = "['elbow'] jump to and fro: two nodes report them"
    while not bench.logged(said) or not bench.logged("stopped, image_timeout"):
        for position in (0.4, 0.0):
            bench.joint_states.publish(JointState(name=["elbow"], position=[position]))
            bench.spin(0.02)
        if not bench.logged(said):
            bench.show()
    assert 0.0 not in [point.positions[0] for command in bench.commands for point in command.points]


def test_joint_states_that_have_ceased_say_nothing_any_more(make):
    parameters = {"command__type": "JointTrajectory", "action__names": ["elbow"], "action__kinds": ["delta"]}
    bench = start(make("", [0.1], control__state_timeout_s=60.0, **parameters), elbow=0.5)
    bench.step()
    assert bench.set("control.state_timeout_s", 0.2).successful
    time.sleep(0.25)
    bench.show()
    bench.until(lambda: bench.logged("stopped, fault"), "the stop")


def test_forward_position(make):
    deltas = [0.02, 0.0, -0.2, 0.0, 0.0, 0.0, 0.5]
    bench = start(
        make("forward_position.yaml", deltas, joints=NUMBERED),
        joint1=0.1, joint2=1.0, joint3=0.0, joint4=0.0, joint5=0.0, joint6=0.0,
    )  # fmt: skip
    bench.step()
    assert list(bench.commands[0].data) == pytest.approx([0.12, 1.0, -0.05, 0.0, 0.0, 0.0])
    assert bench.grippers[0].data == 0.5


def test_forward_velocity(make):
    velocities = [0.1, 0.0, -0.5, 0.0, 0.0, 0.1, 0.5]
    bench = start(
        make("forward_velocity.yaml", velocities, joints=NUMBERED), **dict.fromkeys(NUMBERED[:5], 0.0), joint6=1.999
    )
    bench.step()
    assert list(bench.commands[0].data) == pytest.approx([0.1, 0.0, -0.2, 0.0, 0.0, 0.02])  # joint6: 1 mrad to its end
    bench.node.trigger_deactivate()
    bench.until(lambda: len(bench.commands) == 2, "the stop action")
    assert list(bench.commands[1].data) == [0.0] * 6


# What the robot does not have, or the type cannot carry.

ELBOW: Mapping[str, Any] = {"command__type": "JointTrajectory", "action__names": ["elbow"]}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (
            {"command__type": "PoseStamped"},
            ["carries ['x', 'y', 'z', 'rx', 'ry', 'rz'] or ['x', 'y', 'z', 'qx', 'qy', 'qz', 'qw']", "['x', 'y', 'z']"],
        ),
        (
            {
                "command__type": "PoseStamped",
                "action__names": ["x", "y", "z", "rx", "ry", "rz"],
                "action__kinds": ["delta"] * 6,
            },
            ["where to be, but action.kinds makes ['x', 'y', 'z', 'rx', 'ry', 'rz'] a motion: use TwistStamped"],
        ),
        ({"command__type": "JointTrajectory"}, ["action.names is ['x', 'y', 'z', 'gripper']", "are parts of a pose"]),
        (
            {
                "command__type": "Float64MultiArray",
                "action__names": ["a", "b"],
                "action__kinds": ["velocity", "absolute"],
            },
            ["of positions or of velocities", "['a', 'b'] mixes ['absolute', 'velocity']"],
        ),
        (
            {
                "command__type": "JointTrajectory",
                "action__names": ["left", "left_grip", "right", "right_grip"],
                "action__kinds": ["absolute", "gripper", "absolute", "gripper"],
            },
            ["one value, but action.kinds declares 2: ['left_grip', 'right_grip']; declare those that are joints"],
        ),
        (
            {"action__names": ["x", "y", "roll", "gripper"]},
            ["but action.names is ['x', 'y', 'roll', 'gripper']: rename ['roll']"],
        ),
        (
            {**ELBOW, "action__kinds": ["absolute"], "limits__urdf": "/nowhere.urdf"},
            ["limits.urdf: cannot read /nowhere.urdf"],
        ),
        ({"limits__urdf": "URDF"}, ["bounds joints, but action.names has none: ['x', 'y', 'z', 'gripper']"]),
        (
            {**ELBOW, "action__kinds": ["absolute"], "limits__urdf": "URDF"},
            ["action.names is ['elbow'], but ['elbow'] are not among the joints of", "['joint1', 'joint2']"],
        ),
    ],
)
def test_what_the_type_or_the_robot_does_not_have_is_refused_with_both_lists(make, tmp_path, parameters, words):
    path = tmp_path / "arm.urdf"
    path.write_text(urdf(["joint1", "joint2"]), encoding="utf-8")
    if parameters.get("limits__urdf") == "URDF":
        parameters = {**parameters, "limits__urdf": str(path)}
    bench = make("", [0.0], **parameters)
    assert not bench.configure()
    for word in words:
        bench.until(lambda word=word: bench.logged(word), word)
    values = {name.replace("__", "."): value for name, value in parameters.items()}
    [failure] = [one for one in check_settings(Settings().with_values(values)) if one.level is Level.FAILURE]
    assert all(word in failure.text for word in words)


@pytest.mark.parametrize(
    "config",
    sorted({path.name for path in CONFIG.glob("*.yaml")} - {"eval_modes.yaml", "guard.yaml"}),  # of no policy node
)
def test_what_the_package_ships_passes_both_the_doctor_and_the_node(make, config):
    settings = Settings().with_values(read_parameters(CONFIG / config, "/flashvla"))
    assert not [one for one in check_settings(settings) if one.level is Level.FAILURE]
    spec = ActionSpec.of(settings.action)
    bench = make(config, [0.0] * spec.size, joints=list(spec.joints))
    assert bench.configure(), bench.node.transition_error
    assert bench.node.settings.limits.urdf == settings.limits.urdf


@pytest.mark.parametrize("topic", ["/joint_states", "/arm/joint_states"])
def test_names_that_the_robot_does_not_report_are_refused_with_both_lists(make, topic):
    bench = make("", [0.0], **ELBOW, action__kinds=["absolute"], remap=f"joint_states:={topic}")
    with moving_joints(bench, ["shoulder", "wrist"]):
        assert not bench.configure()
    bench.log_line(f"['elbow'] are not among the joints on {topic}, ['shoulder', 'wrist']")
    with moving_joints(bench, ["shoulder", "elbow"]):
        assert bench.configure()


def test_a_description_that_does_not_come_is_named(make, monkeypatch):
    monkeypatch.setattr("flashvla_ros.nodes.robot_model._DESCRIPTION_S", 0.2)
    bench = make("", [0.0], **ELBOW, action__kinds=["absolute"], limits__robot_description=True)
    assert not bench.configure()
    bench.until(lambda: bench.logged("nothing came on /robot_description within 0.2 s: start robot_state"), "why")


# The box, with a pose.


def test_a_box_needs_a_pose_and_then_holds(make):
    bench = start(
        make(
            "",
            [0.05, 0.0, -0.05, 1.0],
            limits__workspace_lower=[0.0, -0.5, 0.1],
            limits__workspace_upper=[0.5, 0.5, 0.5],
        )
    )
    bench.show()
    bench.until(lambda: bench.logged("publish its pose in command.frame_id on end_effector_pose"), "the reason")
    assert not bench.commands
    at(bench, 0.48, 0.0, 0.12, frame="camera")
    bench.until(lambda: bench.logged("its frame is 'camera', but command.frame_id is 'base_link'"), "the rejection")
    at(bench, 0.48, 0.0, 0.12)
    gate = bench.step()
    assert list(gate.action) == pytest.approx([0.02, 0.0, -0.02, 1.0])
    assert gate.clamped == 2


# Several of them.


def test_two_nodes_in_two_namespaces_do_not_hear_each_other(make):
    left = make("servo_twist.yaml", [0.01] * 7, namespace="left")
    right = make("", [0.5, 0.0, 0.0, 0.0], namespace="right")
    for bench in (left, right):
        bench.start()
    right.say("close the drawer")
    assert left.step().instruction == "open the drawer"
    assert right.step().instruction == "close the drawer"
    assert (len(left.commands), len(right.commands)) == (1, 1)
    right.emergency_stop.publish(right.emergency_stop.msg_type(data=True))
    right.until(lambda: right.report().state == "stopped", "the stop")
    left.step()
    assert left.report().state == "running"
    assert left.diagnostics[-1].status[0].name in ("/left/flashvla", "/right/flashvla")  # /diagnostics is shared
    names = {name for name, _ in Node("ear", context=left.context).get_topic_names_and_types()}
    assert {"/left/command", "/right/command", "/left/flashvla/gate", "/right/flashvla/gate"} <= names
    assert rclpy.ok(context=left.context)
