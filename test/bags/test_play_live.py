"""``ros2 bag play`` into the running node: serialised messages and /clock, as rosbag2's player publishes them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bag_factory import IMAGE, STRING, drive, write_bag

rclpy = pytest.importorskip("rclpy")
sys.path.append(str(Path(__file__).parents[1] / "nodes"))

from policy_bench import PolicyBench  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402

from flashvla_ros.bags.reader import open_bag  # noqa: E402


def play(bench: PolicyBench, bag: Path, clock) -> list:
    """Publish a recording once and return the node's decisions on its images."""
    publishers = {IMAGE: bench.image, STRING: bench.instruction}
    before = len(bench.gates)
    with open_bag(bag) as recording:
        for message in recording.messages(recording.topics):
            now = Clock()
            now.clock.sec, now.clock.nanosec = divmod(message.time_ns, 10**9)
            clock.publish(now)
            bench.until(lambda: bench.node.get_clock().now().to_msg() == now.clock, "the clock")  # noqa: B023
            steps = len(bench.gates)
            publishers[message.type].publish(message.data)
            if message.type == IMAGE:
                bench.until(lambda: len(bench.gates) > steps, "the next step")  # noqa: B023
            else:
                bench.spin(0.05)
    return bench.gates[before:]


def test_a_looped_bag_runs_on_simulated_time_and_starts_the_gate_anew(tmp_path):
    bag = write_bag(tmp_path / "bag", drive(6, hz=4.0))
    bench = PolicyBench(use_sim_time=True, control__image_timeout_s=10.0, gate__scene_patches=0, gate__max_reuse=1)
    try:
        clock = bench.robot.create_publisher(Clock, "/clock", 10)
        assert bench.activate()
        bench.until(lambda: bench.image.get_subscription_count() and clock.get_subscription_count(), "the node")
        first, second = play(bench, bag, clock), play(bench, bag, clock)
    finally:
        bench.close()
    reasons = [gate.reason for gate in first]
    assert reasons == ["start", "too_few_fresh", "reuse", "max_reuse", "reuse", "max_reuse"]
    assert [gate.reason for gate in second] == ["clock_jump", *reasons[1:]]
    assert [gate.header.stamp for gate in first] == [gate.header.stamp for gate in second]
