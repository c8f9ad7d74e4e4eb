"""The description of the processes: what is started with which parameters, and what is refused before."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import rclpy
import yaml
from checkpoints import tiny_config
from rclpy.context import Context
from rclpy.node import Node
from std_msgs.msg import String

from flashvla_ros.bringup import cameras
from flashvla_ros.bringup.monitor import Monitor, Step
from flashvla_ros.bringup.processes import Bringup, Process, refuse_unknown
from flashvla_ros.bringup.terminal import Progress, Screen
from flashvla_ros.core.certificate import certification
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.core.settings import Settings
from flashvla_ros.guard.settings import ROWS, GuardSettings
from flashvla_ros.nodes import interfaces
from flashvla_ros.nodes.parameters import NodeParameters, given_at_start


def settings_of(process: Process) -> Settings:
    """What a node started with these arguments reads."""
    context = Context()
    rclpy.init(context=context)
    node = Node("any", context=context, cli_args=process.arguments())
    try:
        assert node.get_name() == process.name
        return NodeParameters(node).settings
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def test_the_demo_is_a_policy_its_guard_and_a_robot():
    policy, _, robot = Bringup(task="drawer-close", episodes=3, seed=7, instruction="shut it").processes()
    assert (policy.executable, robot.executable) == ("policy_node", "robot_node")
    assert dict(robot.parameters) == {
        "task": "drawer-close",
        "episodes": 3,
        "seed": 7,
        "lock_step": False,
        "instruction": "shut it",
    }
    settings = settings_of(policy)
    assert settings.node.autostart
    assert settings.limits.upper == (0.01, 0.01, 0.01, 1.0)
    assert settings.action.names == ("x", "y", "z", "gripper")


@pytest.mark.parametrize("name", ["demo", "demo-plain"])
def test_a_policy_that_ships_with_a_certificate_starts_with_its_settings(name):
    folder = share_path("models", name)
    settings = settings_of(Bringup(checkpoint=str(folder)).processes()[0])
    for dtype in ("float32", "bfloat16"):  # as the node resolves it on a CPU and on a GPU
        sound, why = certification(settings.with_values({"model.dtype": dtype}), checkpoint_fingerprint(folder))
        assert sound is (dtype == "float32"), why
    assert settings.gate.max_reuse == 1


def test_what_the_user_sets_goes_before_the_certificate_and_a_broken_one_is_left_to_the_node(tmp_path):
    params, folder = tmp_path / "my.yaml", tmp_path / "policy"
    params.write_text("/**:\n  ros__parameters:\n    gate.max_reuse: 3\n")
    settings = settings_of(Bringup(params=str(params), overrides={"gate.delta": 0.8}).processes()[0])
    assert (settings.gate.max_reuse, settings.gate.delta) == (3, 0.8)
    shutil.copytree(share_path("models", "demo"), folder)
    for text in ("{", '{"settings": {"gate.no_such": 1}}'):
        (folder / "certificate.json").write_text(text)
        assert settings_of(Bringup(checkpoint=str(folder)).processes()[0]).gate.max_reuse == 2


def test_overrides_go_before_the_users_file_and_that_before_the_demos(tmp_path):
    params = tmp_path / "my.yaml"
    params.write_text(
        "/**:\n  ros__parameters:\n    gate: {delta: 0.1, max_reuse: 3}\n    control.image_timeout_s: 9.0\n"
    )
    overrides = {"gate.delta": 0.2, "gate.mode": "off", "limits.lower": (), "node.instruction": 'say "no": now'}
    settings = settings_of(Bringup(params=str(params), overrides=overrides).processes()[0])
    assert (settings.gate.delta, settings.gate.max_reuse, settings.gate.mode) == (0.2, 3, "off")
    assert settings.control.image_timeout_s == 9.0
    assert settings.limits.lower == ()
    assert settings.node.instruction == 'say "no": now'


@pytest.mark.parametrize(
    ("topic", "compressed", "remapping"),
    [
        ("/front/image_raw", False, ("image", "/front/image_raw")),
        ("/front/image_raw/compressed", True, ("image/compressed", "/front/image_raw/compressed")),
    ],
)
def test_a_real_camera_needs_no_robot(tmp_path, topic, compressed, remapping):
    policy, _ = Bringup(camera=topic, checkpoint=str(tmp_path), instruction="wave").processes()
    settings = settings_of(policy)
    assert settings.camera.compressed is compressed
    assert remapping in policy.remappings
    assert settings.model.checkpoint == str(tmp_path)
    assert settings.node.instruction == "wave"
    assert settings.limits.upper == ()  # those of the demo's arm are not another robot's


@pytest.mark.parametrize("end", ["", "/compressed"])
def test_several_cameras_are_named_and_remapped_in_their_order(end):
    policy, _ = Bringup(camera=f"wrist:=/arm/wrist/raw{end} front:=/realsense/raw{end}").processes()
    settings = settings_of(policy)
    assert settings.camera.names == ("wrist", "front")
    remapped = dict(policy.remappings)
    topics = [topic.name for topic in interfaces.image_topics(settings.camera).values()]  # as the node opens them
    assert [remapped[topic] for topic in topics] == [f"/arm/wrist/raw{end}", f"/realsense/raw{end}"]


@pytest.mark.parametrize(
    ("bringup", "words"),
    [
        (Bringup(camera="front:=/a /b"), "form name:=topic, such as .*, got '/b'"),
        (Bringup(camera="front:=/a front:=/b"), "each with a name of its own, got 'front:=/b'"),
        (Bringup(camera="a:=/a b:=/b/compressed"), r"all raw or all compressed, but .* only \['/b/compressed'\] are"),
        (Bringup(task="drawer-opne"), "did you mean drawer-open"),
        (Bringup(camera="/image", episodes=2), "belong to the simulated robot"),
        (Bringup(params="/nowhere.yaml"), "no parameter file /nowhere.yaml"),
        (Bringup(checkpoint="/nowhere/at/all"), "checkpoint folder /nowhere/at/all does not exist"),
        (Bringup(camera="/image", remap="command:=/a gripper_command=/b"), "got 'gripper_command=/b'"),
    ],
)
def test_what_cannot_be_started_is_refused_before_anything_is(bringup, words):
    with pytest.raises(FlashVLAError, match=words):
        bringup.processes()


def test_topics_of_a_controller_are_remapped():
    remap = "command:=/servo_node/delta_twist_cmds joint_states:=/arm/joint_states"
    (policy,) = Bringup(camera="/front/image_raw", remap=remap, guard=False).processes()
    words = policy.arguments()
    assert "image:=/front/image_raw" in words
    assert {"command:=/servo_node/delta_twist_cmds", "joint_states:=/arm/joint_states"} <= set(words)


def test_the_launch_file_takes_every_option_that_the_description_has():
    text = (Path(__file__).parents[2] / "launch" / "bringup.launch.py").read_text(encoding="utf-8")
    compile(text, "bringup.launch.py", "exec")
    for name in (
        "task",
        "instruction",
        "episodes",
        "seed",
        "lock_step",
        "camera",
        "checkpoint",
        "params",
        "remap",
        "guard",
    ):
        assert f'    "{name}": "' in text


def test_text_of_a_launch_argument_becomes_a_value_or_one_line():
    bringup = Bringup.from_text({"episodes": "3", "lock_step": "True", "namespace": "left", "autostart": "false"})
    assert bringup == Bringup(episodes=3, lock_step=True, namespace="left", autostart=False)
    with pytest.raises(FlashVLAError, match="episodes must be a whole number, got 'three'"):
        Bringup.from_text({"episodes": "three"})
    with pytest.raises(FlashVLAError, match="autostart must be true or false, got 'yes'"):
        Bringup.from_text({"autostart": "yes"})


def test_a_launch_argument_that_nothing_reads_is_refused_by_name():
    here, known = "/share/flashvla_ros/launch/bringup.launch.py", ("task", "params_file", "camera")
    command = ["/bin/ros2", "launch", "flashvla_ros", "bringup.launch.py"]
    refuse_unknown([*command, "--debug", "task:=drawer-open", "camera:=front:=/a wrist:=/b"], here, known)
    with pytest.raises(FlashVLAError, match="no launch argument 'parms_file'; did you mean params_file"):
        refuse_unknown([*command, "task:=a", "parms_file:=arm.yaml"], here, known)
    refuse_unknown(["ros2", "launch", "my_robot", "robot.launch.py", "arm:=left"], here, known)  # which includes ours


def test_all_nodes_are_in_the_namespace_with_their_log_level():
    bringup = Bringup(namespace="/left", log_level="warn", use_sim_time=True, autostart=False)
    policy, guard, robot = bringup.processes()
    assert guard.parameters["use_sim_time"] is True
    for process in (policy, guard, robot):
        assert "__ns:=/left" in process.arguments()
        assert process.arguments().count("--log-level") == 1
    assert policy.parameters["use_sim_time"] is True
    assert policy.parameters["node.autostart"] is False


def guard_settings(process: Process) -> GuardSettings:
    context = Context()
    rclpy.init(context=context)
    node = Node("any", context=context, cli_args=process.arguments())
    try:
        return GuardSettings.of(given_at_start(node, ROWS))
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)


def test_the_guard_stands_between_the_policy_and_the_controller(tmp_path):
    params = tmp_path / "arm.yaml"
    params.write_text(
        "/**:\n  ros__parameters:\n    action: {names: [a, b], kinds: [absolute, absolute], dt_s: 0.2}\n"
        "    command: {type: JointTrajectory}\n    limits: {upper: [9.0, 9.0]}\n    control: {stop_action: hold}\n"
    )
    limits = tmp_path / "limits.yaml"
    limits.write_text("/**/guard:\n  ros__parameters:\n    limits: {lower: [-1.0, -1.0], upper: [1.0, 1.0]}\n")
    remap = "command:=/arm/joint_trajectory joint_states:=/arm/joint_states"
    bringup = Bringup(camera="/image_raw", params=str(params), guard_params=str(limits), remap=remap)
    policy, guard = bringup.processes()
    assert ("command", "command_unguarded") in policy.remappings
    assert "/arm/joint_trajectory" not in dict(policy.remappings).values()
    assert dict(guard.remappings) == {"command": "/arm/joint_trajectory", "joint_states": "/arm/joint_states"}
    assert settings_of(policy).control.require_guard
    settings = guard_settings(guard)
    assert (settings.command.type, settings.spec.names, settings.action.dt_s) == ("JointTrajectory", ("a", "b"), 0.2)
    assert settings.limits.upper == (1.0, 1.0)  # its own; the policy's cannot widen it
    assert settings.guard.stop_action == "hold"


@pytest.mark.parametrize(
    "names", [("/**", "/flashvla"), ("/flashvla", "/**"), ("/*", "/**/flashvla"), ("left/*", "/**")]
)
def test_what_is_asked_for_goes_before_files_whatever_their_sections_are_called(tmp_path, names):
    """For rcl, sections come in the order in which their names came first, and files that mix them would win."""
    files = [tmp_path / "1.yaml", tmp_path / "2.yaml", tmp_path / "3.yaml"]
    forms = (
        (names, "control: {dry_run: false}"),
        (names[::-1], "control.dry_run: false"),
        (names, "control: {dry_run: no}"),
    )
    for file, (order, form) in zip(files, forms, strict=True):
        file.write_text("".join(f"{name}:\n  ros__parameters: {{{form}}}\n" for name in order))
    overrides = {"control.dry_run": True, "gate.delta": 1e-05, "gate.mode": "off", "action.names": ("y", "n", "é")}
    assert settings_of(Process("flashvla", tuple(files), overrides, (), "left")).with_values({}) == (
        Settings().with_values(overrides)
    )


def test_the_guard_keeps_its_own_stop_action_and_the_policys_clock(tmp_path):
    params, own = tmp_path / "arm.yaml", tmp_path / "guard.yaml"
    params.write_text("/flashvla:\n  ros__parameters: {use_sim_time: true, control: {stop_action: none}}\n")
    own.write_text("/**/guard:\n  ros__parameters: {guard: {stop_action: zero}}\n")
    bringup = Bringup(camera="/image", params=str(params), guard_params=str(own))
    guard = bringup.processes()[1]
    assert guard_settings(guard).guard.stop_action == "zero"
    assert guard.parameters == {"use_sim_time": True}
    own.write_text("/**/guard:\n  ros__parameters: {limits: {max_speed: []}}\n")
    assert bringup.processes()[1].parameters["guard.stop_action"] == "none"


def test_topics_that_are_written_in_full_are_remapped_for_policy_and_guard(tmp_path):
    for space, root in (("", "/"), ("left", "/left/")):
        remap = f"{root}emergency_stop:=/estop {root}command:=/arm/command"
        policy, guard = Bringup(camera="/image", remap=remap, namespace=space).processes()
        assert ("emergency_stop", "/estop") in policy.remappings
        assert dict(guard.remappings) == {"emergency_stop": "/estop", "command": "/arm/command"}
    with pytest.raises(FlashVLAError, match="got 'flashvla:command:=/a'"):
        Bringup(camera="/image", remap="flashvla:command:=/a").processes()


def test_the_demos_guard_allows_what_the_demos_policy_may_say():
    policy, guard, _ = Bringup().processes()
    said, allowed = settings_of(policy), guard_settings(guard)
    assert allowed.limits.upper[:3] == pytest.approx([value / said.action.dt_s for value in said.limits.upper[:3]])
    assert allowed.guard.gripper == (said.limits.lower[3], said.limits.upper[3])
    assert allowed.guard.timeout_s == said.control.image_timeout_s


def test_without_a_guard_the_commands_are_the_policys():
    for bringup in (Bringup(guard=False), Bringup(lock_step=True, episodes=1)):
        policy, _robot = bringup.processes()
        assert policy.remappings == ()
        assert not settings_of(policy).control.require_guard


def test_another_robots_task_is_refused():
    for robot, task, says in (
        ("libero", "drawer-open", "such as libero_object/0"),
        ("demo", "libero_object/0", "such as drawer-open"),
        ("franka", "drawer-open", "one of demo, libero"),
    ):
        with pytest.raises(FlashVLAError, match=says):
            Bringup(robot=robot, task=task).processes()


@pytest.fixture
def libero_checkpoint(tmp_path, monkeypatch):
    """Return a function that writes a checkpoint's config.json and returns a bringup of it."""
    monkeypatch.setattr("flashvla_ros.bringup.libero.find_task", lambda task: task)  # needs LIBERO

    def write(**values) -> Bringup:
        config = tiny_config(norm_stats={"libero_object_no_noops": {}}).to_dict()
        (tmp_path / "config.json").write_text(json.dumps(config | values))
        return Bringup(robot="libero", task="libero_object/3", checkpoint=str(tmp_path))

    return write


def test_libero_takes_images_and_statistics_from_the_checkpoint(libero_checkpoint):
    asked = libero_checkpoint(num_images_in_input=2)
    policy, guard, robot = asked.processes()
    settings = settings_of(policy)
    assert settings.model.unnorm_key == "libero_object_no_noops"
    assert settings.model.center_crop == 1.0  # a tiny checkpoint's pictures are fast ones
    assert settings.camera.names == ("agentview", "robot0_eye_in_hand")
    assert (settings.action.dt_s, settings.command.gripper) == (0.05, (-1.0, 1.0))
    assert {"task": "libero_object/3", "render": "fast", "cameras": 2}.items() <= robot.parameters.items()
    assert guard.files == robot.files
    with pytest.raises(FlashVLAError, match="no statistics of libero_goal"):
        dataclasses.replace(asked, task="libero_goal/3").processes()
    with pytest.raises(FlashVLAError, match="give a checkpoint"):
        dataclasses.replace(asked, checkpoint="").processes()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_images_in_input": 3}, "sees 3 cameras"),
        ({"num_images_in_input": "two"}, "num_images_in_input must be of type int"),
        ({"image_sizes": "big", "vision_config": None}, "vision_backbone_id"),
        ({"norm_stats": None}, "norm_stats is missing"),
        ({"norm_stats": []}, "norm_stats"),
    ],
)
def test_a_checkpoint_that_libero_cannot_use_is_refused_in_one_line(libero_checkpoint, values, says):
    with pytest.raises(FlashVLAError, match=says) as error:
        libero_checkpoint(**values).processes()
    assert "\n" not in str(error.value)


def test_what_the_user_says_of_libero_goes_before_what_the_checkpoint_says(libero_checkpoint, tmp_path):
    asked = libero_checkpoint(num_images_in_input=2)
    file = tmp_path / "mine.yaml"
    own = {"model": {"unnorm_key": "mine", "center_crop": 0.8}, "camera": {"names": ["front"]}}
    file.write_text(yaml.safe_dump({"flashvla": {"ros__parameters": own}}))
    values = {"model.unnorm_key": "mine", "model.center_crop": 0.8, "camera.names": ("front",)}
    for told in ({"params": str(file)}, {"overrides": values}):
        policy, _, robot = dataclasses.replace(asked, task="libero_goal/3", **told).processes()
        settings = settings_of(policy)
        assert (settings.model.unnorm_key, settings.model.center_crop) == ("mine", 0.8)
        assert settings.camera.names == ("front",)
        assert robot.parameters["camera"] == "front" and "cameras" not in robot.parameters


@pytest.mark.parametrize(
    ("names", "parameters"),
    [
        ((), {}),
        (("front",), {"camera": "front"}),
        (("agentview",), {"camera": "agentview"}),
        (("robot0_eye_in_hand", "agentview"), {"cameras": 2}),
    ],
)
def test_the_simulated_robot_has_the_cameras_that_the_policy_listens_to(names, parameters):
    assert cameras.simulated(names) == parameters


@pytest.mark.parametrize("names", [("left", "right"), ("robot0_eye_in_hand",), ("agentview", "front")])
def test_cameras_that_the_simulated_robot_lacks_are_refused(names):
    with pytest.raises(FlashVLAError, match="has agentview and robot0_eye_in_hand"):
        Bringup(overrides={"camera.names": names}).processes()


def test_a_real_robot_is_no_simulated_one():
    with pytest.raises(FlashVLAError, match="robot, episodes and lock_step belong to the simulated robot"):
        Bringup(robot="libero", task="libero_object/0", camera="/image").processes()


def test_libero_counts_images_as_the_model_does(libero_checkpoint):
    for count, values in ((1, {"model.images": 2}), (1, {"model.preset": "libero"}), (2, {})):
        policy, _, robot = dataclasses.replace(
            libero_checkpoint(num_images_in_input=count), overrides=values
        ).processes()
        assert settings_of(policy).camera.names == ("agentview", "robot0_eye_in_hand")
        assert robot.parameters["cameras"] == 2
    policy, _, robot = dataclasses.replace(
        libero_checkpoint(num_images_in_input=2), overrides={"model.images": 1}
    ).processes()
    assert settings_of(policy).camera.names == () and "cameras" not in robot.parameters


def test_libero_takes_the_state_that_a_checkpoint_names(libero_checkpoint):
    policy, *_ = libero_checkpoint(oft={"proprio": ["a", "b"]}).processes()
    assert settings_of(policy).model.proprio == ("a", "b")
    policy, *_ = libero_checkpoint().processes()
    assert settings_of(policy).model.proprio[:6] == ("x", "y", "z", "ax", "ay", "az")


def test_a_checkpoint_or_a_server_of_a_parameter_file_does_for_libero(libero_checkpoint, tmp_path):
    asked = libero_checkpoint()
    for model in ({"checkpoint": asked.checkpoint}, {"remote": "ws://localhost:1"}):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({"/left/flashvla": {"ros__parameters": {"model": model}}}))
        policy, _, robot = dataclasses.replace(asked, checkpoint="", params=str(file), namespace="left").processes()
        assert ("model.unnorm_key" in policy.parameters) == ("render" in robot.parameters) == ("checkpoint" in model)


def test_openpi_serves_the_simulated_libero(libero_checkpoint):
    params = str(share_path("config", "openpi_libero.yaml"))
    policy, _, robot = dataclasses.replace(libero_checkpoint(), checkpoint="", params=params).processes()
    settings = settings_of(policy)
    assert robot.parameters["cameras"] == len(settings.remote.images)
    assert set(settings.model.proprio) <= set(" ".join(settings.remote.state).split())  # the names the robot publishes
    assert (settings.action.gripper, settings.gate.gripper_middle) == ((-1.0, 1.0), 0.0)


@pytest.mark.parametrize("decoder", ["x", "1x2", 3, "0x1x1"])
def test_a_record_of_settings_that_cannot_be_read_ends_nothing(decoder):
    """Any process of the domain may send one."""
    with Monitor.running() as monitor:
        record = {"settings": {}, "checkpoint": "", "platform": {"decoder": decoder}}
        monitor._on_settings(String(data=json.dumps(record)))
        assert monitor.provenance is None


def test_the_summary_leaves_out_what_is_not_known_of_a_servers_model(capsys):
    with Monitor.running() as monitor:
        monitor.steps.append(Step(stamp_ns=1, reused=True, visual_share=math.nan, latency_s=0.002))
        Progress(monitor, Screen(), Bringup()).close()
    assert capsys.readouterr().out == "1 steps, 100% reused; latency p50 2.0 ms, p95 2.0 ms\n"
