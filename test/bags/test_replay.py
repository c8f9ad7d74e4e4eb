"""Replaying without ROS: recordings by others, settings in force, and bad bags."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from bag_factory import (
    COMPRESSED,
    GATE,
    IMAGE,
    START_NS,
    STORE,
    STRING,
    drive,
    header,
    message,
    picture,
    raw_image,
    text,
    write_bag,
)
from fakes import ScriptedPolicy

from flashvla_ros import __main__ as cli
from flashvla_ros.bags import options, record
from flashvla_ros.bags.answers import load_once
from flashvla_ros.bags.options import Source
from flashvla_ros.bags.replay import replay
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import BagError, ObservationError
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.settings import Settings
from flashvla_ros.vla.loading import LoadedPolicy

BOOL = "std_msgs/msg/Bool"
JOINTS = "sensor_msgs/msg/JointState"


def play(bag: Path, **source):
    """Replay a bag with the gate off, so that the policy sees every observation."""
    policy = ScriptedPolicy()
    changed = {"gate.mode": "off", **source.pop("changed", {})}
    with Source(changed, **source).open(bag) as recording:
        comparison = replay(recording, LoadedPolicy(policy))
        return comparison, [request.observation for request in policy.requests], recording.warnings


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compressed", [False, True])
def test_images_of_any_recorder_arrive_pixel_by_pixel(tmp_path, storage, compressed):
    topic = "/image/compressed" if compressed else "/image"
    bag = write_bag(tmp_path / "bag", drive(5, image_topic=topic, compressed=compressed), storage)
    comparison, seen, warnings = play(bag)
    assert (comparison.steps, comparison.compared, warnings) == (5, 0, [])
    for index, observation in enumerate(seen):
        assert np.array_equal(observation.images["image"], picture(index))
        assert observation.stamp_s == START_NS // 10**9 + index * 100_000_000 * 1e-9
        assert observation.instruction == "open the drawer"


def test_the_only_image_topic_is_taken_and_said(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(3, image_topic="/camera/color/image_raw"))
    comparison, _, warnings = play(bag)
    assert comparison.steps == 3
    assert warnings == ["image: /camera/color/image_raw, the only topic of its type"]


def test_instructions_hold_from_their_message_on(tmp_path):
    messages = drive(6)
    messages.insert(4, ("/instruction", STRING, START_NS + 250_000_000, text(" close it ")))
    _, seen, _ = play(write_bag(tmp_path / "bag", messages))
    assert [observation.instruction for observation in seen] == ["open the drawer"] * 3 + ["close it"] * 3


@pytest.mark.parametrize("command", [options, record])
def test_a_node_without_its_slash_is_found_all_the_same(command):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    given = ["--node", "left/arm"] + (["bag", "--topics", "image", "/tf"] if command is record else [])
    args = parser.parse_args(given)
    assert args.node == "/left/arm"
    assert command is options or args.topics == ["/image", "/tf"]


def test_an_instruction_can_be_given(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(3, instruction=None))
    with pytest.raises(BagError, match="has no instruction"):
        play(bag)
    assert play(bag, instruction="push")[1][0].instruction == "push"


def test_an_emergency_stop_empties_the_memory(tmp_path):
    messages = drive(6)
    messages.append(("/emergency_stop", BOOL, START_NS + 250_000_000, STORE.types[BOOL](data=True)))
    bag = write_bag(tmp_path / "bag", sorted(messages, key=lambda message: message[2]))
    policy = ScriptedPolicy()
    with Source().open(bag) as recording:
        stepper = Stepper(policy, recording_spec(recording))
        from flashvla_ros.bags.playback import play as steps

        results = [result for _, result in steps(recording.frames, stepper, recording.settings.at)]
    assert results[3].decision.reason == "emergency_stop"
    assert [result.resets for result in results] == [0, 0, 0, 1, 1, 1]


def recording_spec(recording):
    from flashvla_ros.core.types import ActionSpec

    return ActionSpec.of(recording.settings.first.action)


def test_joint_positions_and_every_camera_are_there(tmp_path):
    joints = STORE.types[JOINTS]
    no = np.array([])
    messages = [("/joint_states", JOINTS, START_NS - 1, joints(header(0), ["x", "y"], np.array([1.0, 2.0]), no, no))]
    for index in range(3):
        time_ns = START_NS + index * 10**8
        messages.append(("/left/image", IMAGE, time_ns, raw_image(picture(index), time_ns)))
        messages.append(("/right/image", IMAGE, time_ns + 10**6, raw_image(picture(index + 50), time_ns)))
    settings = Settings().with_values({"camera.names": ("left", "right")})  # recorded, and told by nobody else
    messages.append(("/flashvla/settings", STRING, START_NS - 2, text(Provenance(settings).to_json())))
    bag = write_bag(tmp_path / "bag", messages)
    _, seen, _ = play(bag, remappings={"left/image": "/left/image"}, instruction="go")
    assert len(seen) == 3  # the images of one stamp, the left one first
    assert seen[0].joint_positions == {"x": 1.0, "y": 2.0}
    assert np.array_equal(seen[0].images["left"], picture(0))
    assert np.array_equal(seen[0].images["right"], picture(50))


def test_no_observation_is_made_while_another_camera_is_silent(tmp_path):
    messages = []
    for index in range(12):
        time_ns = START_NS + index * 10**8
        messages.append(("/left/image", IMAGE, time_ns, raw_image(picture(index), time_ns)))
        if index in (0, 9):
            messages.append(("/right/image", IMAGE, time_ns + 10**6, raw_image(picture(50), time_ns)))
    changed = {"camera.names": ("left", "right"), "control.image_timeout_s": 0.45}
    _, seen, warnings = play(write_bag(tmp_path / "bag", messages), changed=changed, instruction="go")
    assert [round((observation.stamp_s - START_NS / 1e9) * 10) for observation in seen] == [0, 2, 3, 4, 9, 11]
    assert any("camera right is silent for 0.50 s" in warning and "(and 4 more)" in warning for warning in warnings)


def test_the_rate_of_the_control_step_is_kept(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(30, hz=30.0))
    _, seen, _ = play(bag, changed={"control.rate_hz": 10.0})
    assert len(seen) == 10


def test_images_without_stamps_are_stamped_with_their_recording(tmp_path):
    messages = [(t, k, n, raw_image(picture(0), 0) if k == IMAGE else m) for t, k, n, m in drive(3)]
    _, seen, _ = play(write_bag(tmp_path / "bag", messages))
    assert [observation.stamp_s for observation in seen] == pytest.approx([START_NS / 1e9 + n / 10 for n in range(3)])


def test_a_second_camera_without_stamps_does_not_hide_which_images_were_answered(tmp_path):
    messages = []
    for index in range(3):
        time_ns = START_NS + index * 10**8
        messages.append(("/right/image", IMAGE, time_ns, raw_image(picture(50), 0)))
        messages.append(("/left/image", IMAGE, time_ns + 10**6, raw_image(picture(index), time_ns)))
    messages.append(("/flashvla/gate", GATE, START_NS + 11 * 10**7, message(GATE, START_NS + 10**8, instruction="go")))
    comparison, seen, _ = play(write_bag(tmp_path / "bag", messages), changed={"camera.names": ("left", "right")})
    assert (comparison.compared, len(seen)) == (1, 1)
    assert np.array_equal(seen[0].images["left"], picture(1))


def test_a_change_of_size_and_time_running_backwards_are_warned_of(tmp_path):
    messages = drive(4, hz=2.0) + [(t, k, n + 10**10, m) for t, k, n, m in drive(4, size=(24, 32), instruction=None)]
    comparison, _, warnings = play(write_bag(tmp_path / "bag", messages))
    assert comparison.steps == 8
    assert any("images of camera image change from 64 x 48 to 32 x 24" in warning for warning in warnings)
    assert any("time runs backwards" in warning for warning in warnings)


def test_a_step_that_the_policy_refuses_is_another_than_the_recorded_one(tmp_path):
    def answer(request, made):
        if request.observation.stamp_s > START_NS / 1e9 + 0.15:
            raise ObservationError("too dark")
        return made

    steps = [
        ("/flashvla/gate", GATE, n, message(GATE, n, step=i, instruction="go", reason="mode_off"))
        for i, n in enumerate(range(START_NS, START_NS + 3 * 10**8, 10**8))
    ]
    bag = write_bag(tmp_path / "bag", sorted([*drive(3), *steps], key=lambda entry: entry[2]))
    with Source({"gate.mode": "off"}).open(bag) as recording:
        comparison = replay(recording, LoadedPolicy(ScriptedPolicy(answer=answer)))
    assert (comparison.steps, comparison.compared, comparison.differing) == (2, 3, 3)


def test_an_unusable_image_is_counted_and_the_rest_replays(tmp_path):
    messages = drive(5)
    for index in (2, 3):
        messages[index][3].encoding = "32FC1"
    comparison, _, warnings = play(write_bag(tmp_path / "bag", messages))
    assert comparison.steps == 3
    assert any("32FC1" in warning and "(and 1 more)" in warning for warning in warnings)


def test_images_that_repeat_or_come_late_are_left_out_and_said(tmp_path):
    messages = drive(5)
    messages[3][3].header.stamp.nanosec -= 150_000_000  # the third image is older than the second
    messages[4] = (*messages[4][:3], raw_image(picture(9), START_NS + 100_000_000))  # and the fourth as old as it
    comparison, _, warnings = play(write_bag(tmp_path / "bag", messages))
    assert comparison.steps == 3
    [warning] = warnings
    assert "stamped 1700000000.050 s came after one stamped 1700000000.100 s" in warning
    assert warning.endswith("(and 1 more)")


def test_a_truncated_bag_replays_up_to_the_break(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(12, size=(480, 640)))
    file = bag / "bag.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    comparison, _, warnings = play(bag)
    assert 6 <= comparison.steps < 12
    assert any("breaks off at byte" in warning for warning in warnings)


def bad_bags():
    """Name, messages, options, and the words of the one line that is expected."""
    images = drive(3)
    swapped = [(t, COMPRESSED if t == "/image" else k, n, m) for t, k, n, m in drive(3, compressed=True)]
    other = [("/odom", STRING, START_NS, text("x"))]
    broken = drive(3)
    for sent in broken[1:]:
        sent[3].encoding = "32FC1"
    return [
        ("empty", [], [], "has no messages"),
        (
            "no images",
            other,
            [],
            "has no topic for image; it has /odom (String, 1): name one with --topic image=/TOPIC",
        ),
        ("two cameras", drive(2, image_topic="/a") + drive(2, image_topic="/b"), [], "/a (Image, 2), /b (Image, 2)"),
        ("not there", images, ["--topic", "image=/cam"], "has no topic /cam; it has /image (Image, 3)"),
        ("wrong type", images, ["--topic", "image=/instruction"], "/instruction in"),
        (
            "wrong type of a default",
            [("/image", STRING, START_NS, text("x"))],
            [],
            "is a std_msgs/msg/String, not sensor",
        ),
        ("unknown role", images, ["--topic", "picture=/image"], "the roles are image, instruction"),
        ("no role", images, ["--topic", "/image"], "--topic takes ROLE=/TOPIC"),
        ("no instruction", drive(3, instruction=None), [], "has no instruction: name its topic"),
        ("unusable images", broken, [], "has no observation to replay: the image at"),
        ("bad value", images, ["--set", "gate.delta=2"], "gate.delta must be from 0 to 1"),
        ("no checkpoint", swapped, ["--topic", "image=/image", "--set", "model.checkpoint=/no/where"], "/no/where"),
        ("no settings file", images, ["--settings", "/no/where.yaml"], "cannot read /no/where.yaml"),
    ]


@pytest.mark.parametrize("command", ["replay", "tune"])
@pytest.mark.parametrize(("name", "messages", "options", "words"), bad_bags(), ids=lambda value: str(value)[:20])
def test_a_bad_bag_is_one_clear_line_and_exit_code_2(
    tmp_path, monkeypatch, capsys, command, name, messages, options, words
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flashvla_ros.bags.answers.load_policy", load)
    load_once.cache_clear()
    bag = write_bag(tmp_path / "bag", messages)
    assert cli.main([command, str(bag), *options]) == 2, name
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if line.startswith("flashvla-ros:")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in output.err


def load(settings):
    """Load the real policy where a checkpoint is named, and a scripted one otherwise."""
    from flashvla_ros.vla.loading import load_policy

    return load_policy(settings) if settings.model.checkpoint else LoadedPolicy(ScriptedPolicy())
