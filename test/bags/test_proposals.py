"""Limits and thresholds from a recording: what is proposed loads in node and guard, and refuses as it said."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from bag_factory import IMAGE, START_NS, STORE, STRING, picture, raw_image, text
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

from flashvla_ros import __main__ as cli
from flashvla_ros.bags.definitions import message_definition
from flashvla_ros.bags.options import Source
from flashvla_ros.bags.proposals import RecordedRun, action_rows, read_runs
from flashvla_ros.cli.parameter_files import read_parameters
from flashvla_ros.core.provenance import Provenance, settings_digest
from flashvla_ros.core.settings import Settings
from flashvla_ros.guard.rules import Age, Guard
from flashvla_ros.guard.settings import GuardSettings
from flashvla_ros.msg import GateStatus

GATE = "flashvla_ros/msg/GateStatus"
RUNS, STEPS = 20, 15
JOINTS = ("--set", "command.type=JointTrajectory", "--set", "action.names=a,b,c,gripper")


def write_run(path, actions: np.ndarray, settings: Settings, activations: int = 1, digests: int = 1):
    """A recording of commands [runs, steps, D] at 10 Hz, with the settings and the pictures that they answer.

    Its runs are those of `activations`; its settings change `digests` - 1 times, and nobody recorded to what.
    """
    record = Provenance(settings, {}, {}).to_json()
    definition, _ = message_definition(GATE)
    STORE.register(get_types_from_msg(definition, GATE)) if GATE not in STORE.types else None
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = (("/image", IMAGE), ("/instruction", STRING), ("/flashvla/settings", STRING), ("/flashvla/gate", GATE))
        to = {topic: writer.add_connection(topic, kind, typestore=STORE) for topic, kind in topics}
        for topic, words in (("/instruction", "push"), ("/flashvla/settings", record)):
            writer.write(to[topic], START_NS - 1, STORE.serialize_cdr(text(words), STRING))
        for number, action in enumerate(actions.reshape(-1, actions.shape[-1])):
            at_ns = START_NS + number * 10**8
            writer.write(to["/image"], at_ns, STORE.serialize_cdr(raw_image(picture(number, (24, 32)), at_ns), IMAGE))
            step = number % (actions[..., 0].size // activations)
            changed = number * digests // actions[..., 0].size
            status = GateStatus(
                step=step,
                epoch=step // actions.shape[1],
                instruction="push",
                settings_digest=str(changed) if changed else settings_digest(settings),
                action=action.tolist(),
                action_size=len(action),
            )
            status.header.stamp.sec, status.header.stamp.nanosec = divmod(at_ns, 10**9)
            writer.write(to["/flashvla/gate"], at_ns + 1, serialize_message(status))
    return path


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Twenty runs of a demo robot that circles: deltas of at most 5 mm, and a gripper."""
    rng = np.random.default_rng(0)
    phase = 0.2 * np.arange(STEPS) + rng.uniform(0.0, 0.1, (RUNS, 1))
    still = np.zeros_like(phase)
    actions = np.stack([0.005 * np.sin(phase), 0.005 * np.cos(phase), still, np.where(phase > 1.0, 1.0, -1.0)], axis=-1)
    bag = write_run(tmp_path_factory.mktemp("limits") / "bag", actions, Settings())
    return bag, actions


def test_what_is_proposed_loads_in_both_and_refuses_what_it_said(recorded, tmp_path, capsys):
    bag, actions = recorded
    path = tmp_path / "limits.yaml"
    options = ["--quantile", "0.95", "--margin", "0", "--step-matrix"]
    assert cli.main(["tune", str(bag), "--limits", str(path), *options]) == 0
    printed = capsys.readouterr().out
    node = Settings().with_values(read_parameters(path, "/flashvla"))
    assert node.limits.upper[0] == pytest.approx(np.quantile(actions[..., 0], 0.95), rel=1e-3)
    content = yaml.safe_load(path.read_text())["/**/guard"]["ros__parameters"]
    given = {f"{group}.{name}": value for group, values in content.items() for name, value in values.items()}
    guard_settings = GuardSettings.of({**given, "guard.resume_s": 0.0})
    assert guard_settings.guard.gripper == node.limits.lower[3:] + node.limits.upper[3:]
    refused = 0
    for run in actions:
        before = np.zeros(6)
        for action in run:
            guard = Guard(guard_settings)
            twist = np.concatenate([action[:3] / 0.1, np.zeros(3)])
            guard._passed, guard._held = (before[None], 10.0), before  # as after a command that passed
            refused += not guard.command(twist[None], Age(), 10.0)[0]
            before = twist
    assert 0 < refused < actions.size // 4 // 4
    assert f"guard: would have changed or refused {refused} of {RUNS * STEPS}" in printed


def test_limits_with_a_margin_pass_the_recording(recorded, tmp_path, capsys):
    bag, _ = recorded
    assert cli.main(["tune", str(bag), "--limits", str(tmp_path / "l.yaml"), "--step-matrix"]) == 0
    assert capsys.readouterr().out.count("refused 0 of 300 (0.00%)") == 2


def test_thresholds_of_the_monitors_go_into_the_same_file(recorded, tmp_path):
    bag, _ = recorded
    path = tmp_path / "both.yaml"
    assert cli.main(["tune", str(bag), "--limits", str(path), "--monitors", str(path)]) == 0
    node = Settings().with_values(read_parameters(path, "/flashvla"))
    assert node.limits.max_step
    assert 0.0 <= node.monitor.max_reversals < 0.5  # a circle never turns back
    assert 0.0 < node.monitor.max_oscillation < 1.0


@pytest.mark.parametrize(("activations", "digests"), [(2, 1), (1, 3)])
def test_a_run_begins_where_the_node_was_activated_or_reset_alone(tmp_path, activations, digests):
    actions = np.repeat(np.arange(2.0), 12).reshape(2, 12, 1) * np.ones(4)  # a jump from the first to the second
    bag = write_run(tmp_path / "bag", actions, Settings(), activations, digests)
    _, runs = read_runs([bag], Source())
    assert [run.commands.shape for run in runs] == [(12, 1, 4)] * 2
    assert [np.ptp(run.commands) for run in runs] == [0.0, 0.0]


def test_a_recording_of_another_robot_is_named(recorded, tmp_path, capsys):
    other = write_run(tmp_path / "other", np.zeros((1, 5, 3)), Settings())
    assert cli.main(["tune", str(recorded[0]), str(other), "--limits", str(tmp_path / "l.yaml")]) == 2
    assert "step 0 has 3 numbers, not rows of 4 (action.names)" in capsys.readouterr().err


def test_angles_are_unwrapped_for_limits_and_left_alone_in_the_recording():
    names = ("x", "y", "z", "rx", "ry", "rz")
    settings = Settings().with_values({"action.names": names, "action.kinds": ["absolute"] * 6})
    turning = np.zeros((40, 2, 6))
    turning[..., 5] = np.angle(np.exp(1j * 0.2 * (np.arange(40)[:, None] + np.arange(2))))
    recorded_once = turning.copy()
    spec, rows = action_rows([RecordedRun(0.1 * np.arange(40), turning)], settings)
    assert spec.angles == [3, 4, 5]
    assert rows[0][-1, 5] == pytest.approx(0.2 * 39)
    assert np.array_equal(turning, recorded_once)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--monitors", "m.yaml", "--alarm-rate", "0.01"], "--alarm-rate 0.01 needs 99 runs from start to stop"),
        (["--limits", "l.yaml", "--json", "l.json"], "--json has no part in --limits or --monitors"),
        (["--monitors", "m.yaml", "--max-error", "0.2"], "--max-error has no part in --limits or --monitors"),
        (["--step-matrix"], "--step-matrix says nothing without --limits or --monitors"),
        (["--limits", "l.yaml", "--quantile", "0.1"], "--quantile is above 0.5"),
        (["--limits", "l.yaml", *JOINTS], "counted from the measured position"),
    ],
)
def test_what_cannot_be_proposed_is_said(recorded, options, words, capsys):
    assert cli.main(["tune", str(recorded[0]), *options]) == 2
    assert words in capsys.readouterr().err
