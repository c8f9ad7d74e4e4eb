"""Record the node at work through DDS, replay the recording, and get the same again, bit for bit."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from bag_factory import picture
from checkpoints import write_checkpoint
from recording import copy_bag, recording

rclpy = pytest.importorskip("rclpy")
sys.path.append(str(Path(__file__).parents[1] / "nodes"))

from policy_bench import PolicyBench  # noqa: E402
from std_msgs.msg import Bool, Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from flashvla_ros import __main__ as cli  # noqa: E402
from flashvla_ros.messages.images import encode_image  # noqa: E402
from flashvla_ros.remote.loading import FROM_SETTINGS  # noqa: E402

pytestmark = pytest.mark.timeout(400)  # the recorder is a process of its own, slow to start on a busy machine

SCORE = [-0.1, 0.1, 0.1, 0.1, -0.1, 0.1, 0.1, -20.0]  # little risk, so that λ soon allows it
EAGER = {"gate__delta": 0.0, "gate__max_angle_deg": 180.0, "gate__max_reuse": 3, "gate__scene_patches": 0}
QUICK = {"control__image_timeout_s": 10.0, "control__inference_timeout_s": 30.0}
# Images after each change that `drive` makes; the node answers each of them.
SHOWN = (8, 5, 5, 5, 4, 4, 4, 4, 3, 3, 6, 14)
STEPS = sum(SHOWN)


def drive(bench: PolicyBench) -> None:
    """Move through everything that a replay has to follow."""
    counts = iter(SHOWN)

    def show() -> None:
        for _ in range(next(counts)):
            header = Header(stamp=bench.node.get_clock().now().to_msg(), frame_id="camera")
            steps = len(bench.gates)
            bench.image.publish(encode_image(picture(len(bench.gates)), header))
            bench.until(lambda: len(bench.gates) > steps, "the next step")  # noqa: B023

    bench.say("open the drawer")
    show()
    assert bench.set("gate.max_reuse", 1).successful
    show()
    bench.say("close the drawer")
    show()
    bench.call(bench.reset, Trigger.Request())
    show()
    assert bench.set("pruning.keep_ratio", 0.4).successful
    show()
    assert bench.set("decode.mode", "draft").successful
    show()
    assert bench.set("decode.accept_bins", 40).successful
    show()
    assert bench.set("control.ramp_s", 1.0).successful
    assert bench.set("control.speed_scale", 0.6).successful
    bench.call(bench.reset, Trigger.Request())
    show()
    assert bench.set("control.dry_run", True).successful
    show()
    assert bench.set("control.dry_run", False).successful
    show()
    bench.emergency_stop.publish(Bool(data=True))
    bench.until(lambda: bench.logged("emergency_stop"), "the stop")
    bench.call(bench.reset, Trigger.Request())
    show()
    learning = {"score": SCORE, "audit_rate": 0.5, "risk": 0.5, "tolerance": 2.0, "max_angle_deg": 180.0}
    for name, value in learning.items():
        assert bench.set(f"calibration.{name}", value).successful
    assert bench.set("gate.calibration", "online").successful
    show()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recorded run: the bag, the checkpoint, and the decisions that the node published."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint = write_checkpoint(folder / "checkpoint")
    bench = PolicyBench(factory=FROM_SETTINGS, model__checkpoint=str(checkpoint), **EAGER, **QUICK)
    try:
        with recording(folder / "bag"):
            assert bench.configure()
            bench.until(lambda: bench.image.get_subscription_count() > 1, "the recorder", timeout_s=120)
            bench.until(lambda: bench.node.count_subscribers("/flashvla/gate") > 1, "the recorder", timeout_s=120)
            assert bench.activate()
            drive(bench)
            bench.spin(0.3)
        gates = list(bench.gates)
    finally:
        bench.close()
    return folder / "bag", checkpoint, gates


def replay(bag, tmp_path, *options):
    """Run the command; return its exit code and row."""
    code = cli.main(["replay", str(bag), "--json", str(tmp_path / "out.json"), *options])
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["meta"]) >= {"device", "versions", "platform", "settings", "checkpoint"}
    return code, result["rows"][0]


def test_the_run_reuses_resets_and_follows_every_change(run):
    _, _, gates = run
    assert len(gates) == STEPS
    assert sum(gate.draft_tokens for gate in gates) > 0
    assert {"reuse", "start", "new_instruction", "reset", "max_reuse", "dry_run"} <= {gate.reason for gate in gates}
    calibrated = [gate for gate in gates if len(gate.calibration_state)]
    assert {"learning", "audit", "reuse"} <= {gate.reason for gate in calibrated}
    assert len({gate.need for gate in calibrated}) > 3
    assert len({gate.permissiveness for gate in calibrated}) > 3
    changes = [
        "gate.max_reuse",
        "pruning.keep_ratio",
        "decode.mode",
        "decode.accept_bins",
        "ramp_s, speed_scale",
        "dry_run",
        "calibration",
    ]
    assert len({gate.settings_digest for gate in gates}) == 1 + len(
        changes
    )  # the end of the dry run brings nothing new
    resets = ["~/reset", "~/reset", "dry run", "emergency stop, ~/reset"]  # the last two come before one step
    assert [gate.epoch for gate in gates] == sorted(gate.epoch for gate in gates)
    assert len({gate.epoch for gate in gates}) == 1 + len(resets)
    slow = [gate for gate in gates if gate.speed_scale < 1.0]
    assert len({gate.speed_scale for gate in slow}) > 4  # on their way up, twice
    assert sum(gate.dry_run for gate in gates) == SHOWN[8]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_replay_is_identical_in_both_storages(run, tmp_path, capsys, storage):
    bag, _, gates = run
    if storage == "sqlite3":
        bag = copy_bag(bag, tmp_path / "copy", storage)
    code, row = replay(bag, tmp_path)
    output = capsys.readouterr()
    assert code == 0, output
    assert (row["steps"], row["identical"], row["first_difference"]) == (STEPS, True, None)
    assert row["reuse_rate"] == pytest.approx(np.mean([gate.decision for gate in gates]))
    assert f"identical: every decision and action of all {STEPS} steps" in output.out


def test_remapped_topics_are_found_or_named(run, tmp_path):
    bag, _, _ = run
    names = {"/image": "/camera/color/image_raw", "/flashvla/gate": "/vla/gate", "/flashvla/settings": "/vla/settings"}
    copy = copy_bag(bag, tmp_path / "copy", "mcap", names)
    assert replay(copy, tmp_path)[1]["identical"]
    assert replay(copy, tmp_path, "--topic", "image=/camera/color/image_raw", "--topic", "gate=/vla/gate")[0] == 0


def test_other_settings_give_the_first_difference_and_why(run, tmp_path, capsys):
    bag, _, gates = run
    code, row = replay(bag, tmp_path, "--set", "gate.mode=off")
    first = next(index for index, gate in enumerate(gates))
    assert code == 1
    assert not row["identical"]
    assert row["first_difference"]["step"] == first
    assert row["reuse_rate"] == 0.0
    assert row["why"] == ["gate.mode was guarded and is off here"]
    assert "because gate.mode was guarded and is off here" in capsys.readouterr().out


def test_another_checkpoint_is_named_as_the_cause(run, tmp_path):
    bag, _, _ = run
    other = write_checkpoint(tmp_path / "other", seed=1)
    code, row = replay(bag, tmp_path, "--set", f"model.checkpoint={other}")
    assert code == 1
    assert any("checkpoint was another one" in reason for reason in row["why"])


def test_a_bag_without_decisions_replays_every_image(run, tmp_path, capsys):
    bag, checkpoint, _ = run
    copy = copy_bag(bag, tmp_path / "copy", "mcap", {"/flashvla/gate": "", "/flashvla/settings": ""})
    code, row = replay(copy, tmp_path, "--set", f"model.checkpoint={checkpoint}")
    assert code == 0
    assert (row["steps"], row["identical"]) == (STEPS, None)
    assert "nothing to compare with" in capsys.readouterr().out


def test_missing_images_are_counted_and_named(run, tmp_path):
    bag, _, _ = run
    from rosbags.rosbag2 import Reader

    with Reader(bag) as reader:
        times = [time_ns for connection, time_ns, _ in reader.messages() if connection.topic == "/image"]
    code, row = replay(copy_bag(bag, tmp_path / "copy", "mcap", drop={("/image", times[3])}), tmp_path)
    assert code == 1
    assert row["missing"] == 1
    assert any("the images of 1 steps are not in the bag, the first that of step 3" in reason for reason in row["why"])
