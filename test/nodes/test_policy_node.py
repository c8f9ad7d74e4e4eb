"""The policy node at work: steps, commands, parameters, instructions, lifecycle, over real rclpy and DDS."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import HeldPolicy, ScriptedPolicy
from policy_bench import TASK, PolicyBench
from std_srvs.srv import Trigger

from flashvla_ros.core.errors import CheckpointError, SettingsError
from flashvla_ros.core.provenance import Provenance, settings_digest
from flashvla_ros.core.settings import Settings
from flashvla_ros.msg import GateStatus
from flashvla_ros.nodes import interfaces
from flashvla_ros.vla.loading import EngineState, LoadedPolicy, PolicyFactory

MakeBench = Callable[..., PolicyBench]


@pytest.fixture
def make() -> Iterator[MakeBench]:
    benches: list[PolicyBench] = []

    def make(*arguments: Any, **parameters: Any) -> PolicyBench:
        benches.append(PolicyBench(*arguments, **parameters))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def test_an_image_becomes_a_command_with_the_stamp_of_the_image(make):
    bench = make(control__image_timeout_s=10.0).start()
    shown = bench.show()
    bench.until(lambda: bench.gates, "the first step")
    command, gate = bench.commands[0], bench.gates[0]
    assert command.header.stamp == shown.stamp
    assert command.header.frame_id == "base_link"
    # 5 mm in 0.1 s
    assert (command.twist.linear.x, command.twist.linear.y) == (pytest.approx(0.05), 0.0)
    assert bench.grippers[0].data == pytest.approx(0.01)
    assert (gate.decision, gate.reason, gate.instruction) == (GateStatus.INFER, "start", TASK)
    assert gate.header == shown
    assert list(gate.action) == [0.005, 0.0, 0.0, 0.01]
    assert gate.action_size == 4
    assert math.isnan(gate.angle_deg)
    assert list(gate.kept_tokens) == list(range(40))
    assert gate.settings_digest == settings_digest(bench.node.settings)


def test_reused_steps_publish_the_last_fresh_action_without_the_model(make):
    bench = make(control__image_timeout_s=10.0, gate__max_reuse=1).start()
    gates = [bench.step() for _ in range(5)]
    assert [gate.decision for gate in gates] == [0, 0, 1, 0, 1]
    assert bench.policy.calls == 3
    assert gates[2].action == gates[1].action
    assert len(bench.commands) == 5


def test_gate_delta_changes_the_very_next_gate_status(make):
    bench = make(control__image_timeout_s=10.0).start()
    assert bench.step().delta == 0.5
    assert bench.set("gate.delta", 0.9).successful
    gate = bench.step()
    assert gate.delta == 0.9
    assert gate.settings_digest == settings_digest(bench.node.settings)


def test_gate_delta_changes_the_very_next_gate_status_even_while_the_model_runs(make):
    policy = HeldPolicy()
    bench = make(policy, control__image_timeout_s=10.0, control__inference_timeout_s=20.0)
    bench.start().step()
    bench.show()
    bench.until(policy.entered.is_set, "the model")
    assert bench.set("gate.delta", 0.9).successful
    policy.go_on.set()
    bench.until(lambda: len(bench.gates) == 2, "the step that was under way")
    assert bench.gates[1].delta == 0.9
    assert bench.policy.calls == 2


def test_a_new_instruction_drops_the_answer_to_the_old_one(make):
    policy = HeldPolicy()
    bench = make(policy, control__image_timeout_s=10.0, control__inference_timeout_s=20.0)
    bench.start().step()
    bench.show()
    bench.until(policy.entered.is_set, "the model")
    bench.say("close the drawer")
    policy.go_on.set()
    gate = bench.step()
    assert (gate.instruction, gate.reason) == ("close the drawer", "new_instruction")
    assert len(bench.gates) == 2


def test_refusals_name_the_range_and_the_fixed_parameter(make):
    bench = make(control__image_timeout_s=10.0).start()
    refused = bench.set("gate.delta", 1.5)
    assert not refused.successful
    assert "0.0" in refused.reason
    assert "1.0" in refused.reason
    fixed = bench.set("model.device", "cuda:0")
    assert not fixed.successful
    assert "model.device" in fixed.reason
    assert bench.step().delta == 0.5


def test_what_this_checkpoint_cannot_do_is_refused(make):
    def check(settings: Settings) -> None:
        if settings.pruning.layer >= 4:
            raise SettingsError(f"pruning.layer must be below 4, got {settings.pruning.layer}")

    bench = make(factory=PolicyFactory(lambda _: LoadedPolicy(ScriptedPolicy(), check))).start()
    refused = bench.set("pruning.layer", 4)
    assert not refused.successful
    assert "below 4" in refused.reason
    assert bench.set("pruning.layer", 3).successful


def test_a_new_instruction_resets_the_gate_at_once(make):
    bench = make(control__image_timeout_s=10.0, gate__max_reuse=100, gate__max_age_s=60.0).start()
    for _ in range(2):
        bench.step()
    assert bench.step().decision == GateStatus.REUSE
    bench.say("close the drawer")
    gate = bench.step()
    assert (gate.decision, gate.reason, gate.instruction) == (GateStatus.INFER, "new_instruction", "close the drawer")
    assert bench.step().decision == GateStatus.INFER  # two fresh results again before anything is reused
    assert bench.step().decision == GateStatus.REUSE


def test_what_a_draft_gave_is_in_every_step_and_in_the_status(make):
    def answer(request, scripted):
        counts = {"draft_tokens": 4, "draft_accepted": 3, "draft_near": 1} if request.draft else {}
        return dataclasses.replace(scripted, **counts)

    policy = ScriptedPolicy(answer=answer)
    bench = make(policy, control__image_timeout_s=10.0, decode__mode="draft", gate__max_reuse=1).start()
    assert math.isnan(bench.report().draft_acceptance)
    gates = [bench.step() for _ in range(4)]
    assert [gate.decision for gate in gates] == [0, 0, 1, 0]
    assert [(gate.draft_tokens, gate.draft_accepted, gate.draft_near) for gate in gates] == [
        (0, 0, 0), (4, 3, 1), (0, 0, 0), (4, 3, 1),
    ]  # fmt: skip
    assert bench.report().draft_acceptance == 0.75
    assert bench.set("decode.mode", "greedy").successful
    bench.step()
    assert bench.step().draft_tokens == 0


def test_the_same_instruction_again_is_no_reset(make):
    bench = make(control__image_timeout_s=10.0, gate__max_reuse=100).start()
    for _ in range(2):
        bench.step()
    bench.say(TASK)
    bench.say(f"  {TASK}\n")
    assert bench.step().decision == GateStatus.REUSE


def test_reset_empties_the_memory(make):
    bench = make(control__image_timeout_s=10.0, gate__max_reuse=100).start()
    for _ in range(3):
        epoch = bench.step().epoch
    answer = bench.call(bench.reset, Trigger.Request())
    assert answer.success
    gate = bench.step()
    assert (gate.decision, gate.reason) == (GateStatus.INFER, "reset")
    assert gate.epoch > epoch


def test_an_instruction_may_come_as_a_parameter(make):
    bench = make(node__instruction="push the button", control__image_timeout_s=10.0)
    assert bench.activate()
    assert bench.step().instruction == "push the button"


def test_limits_clamp_and_are_counted(make):
    bench = make(control__image_timeout_s=10.0, limits__upper=[0.001, 1.0, 1.0, 1.0]).start()
    gate = bench.step()
    assert gate.action[0] == 0.001
    assert gate.clamped == 1
    assert bench.set("limits.upper", [0.002, 1.0, 1.0, 1.0]).successful
    assert bench.step().action[0] == 0.002
    assert bench.report().clamped == 2


def test_float64_multi_array_is_labelled(make):
    policy = ScriptedPolicy(actions=[[[0.5, 0.25], [0.1, 0.2]]])
    bench = make(
        policy,
        command__type="Float64MultiArray",
        action__names=["shoulder", "elbow"],
        action__kinds=["absolute", "absolute"],
    ).start()
    bench.step()
    command = bench.commands[0]
    assert list(command.data) == pytest.approx([0.005, 0.0025])  # a forward controller takes one value for each joint
    assert [(dim.label, dim.size, dim.stride) for dim in command.layout.dim] == [("shoulder,elbow", 2, 2)]
    assert not bench.grippers


def test_status_and_diagnostics_tell_the_state(make):
    bench = make(control__image_timeout_s=10.0).start()
    assert bench.report().state == "waiting"
    assert "no usable image yet on /image" in bench.diagnostics[-1].status[0].message
    for _ in range(3):
        bench.step()
    status = bench.report()
    assert (status.state, status.stop_reason, status.instruction) == ("running", "", TASK)
    assert (status.steps, status.inferred, status.reused, status.rejected) == (3, 2, 1, 0)
    assert status.reuse_rate == pytest.approx(1 / 3)
    assert 0.0 < status.latency_p50_s <= status.latency_p95_s <= status.latency_p99_s
    [entry] = bench.diagnostics[-1].status
    assert entry.message == "running"
    assert {"steps", "reuse_rate", "latency_p99_s"} <= {value.key for value in entry.values}


@pytest.mark.parametrize("topic", [interfaces.IMAGE, interfaces.COMMAND], ids=lambda topic: topic.name)
def test_a_second_publisher_of_images_or_commands_shows_in_the_diagnostics(make, topic):
    bench = make(control__image_timeout_s=10.0).start()
    bench.step()
    bench.report()
    assert bench.diagnostics[-1].status[0].message == "running"
    bench.robot.create_publisher(topic.type, topic.name, topic.qos)
    bench.until(lambda: bench.node.count_publishers(topic.name) == 2, "the second publisher")
    bench.report()
    assert bench.diagnostics[-1].status[0].message == f"more than one publisher on /{topic.name}"


def test_an_engine_that_failed_its_check_shows_in_status_and_diagnostics(make):
    fault = "the engine static differs from the reference"
    loaded = LoadedPolicy(ScriptedPolicy(), engine=lambda: EngineState("eager", fault))
    bench = make(factory=PolicyFactory(lambda _: loaded), control__image_timeout_s=10.0).start()
    bench.step()
    bench.report()
    assert bench.statuses[-1].engine == f"eager: {fault}"
    assert bench.diagnostics[-1].status[0].message == f"slow, engine eager: {fault}"


def test_settings_are_published_for_whoever_records(make):
    loaded = LoadedPolicy(ScriptedPolicy(), checkpoint="abc", platform={"device": "none"})
    bench = make(factory=PolicyFactory(lambda _: loaded))
    lines: list[Any] = []
    bench.start()
    topic = interfaces.SETTINGS
    bench.robot.create_subscription(topic.type, "/flashvla/settings", lines.append, topic.qos)
    bench.until(lambda: lines, "the settings, late though the reader is")
    provenance = Provenance.from_json(lines[-1].data)
    assert provenance.settings == bench.node.settings
    assert json.loads(lines[-1].data)["checkpoint"] == "abc"
    assert bench.set("gate.delta", 0.25).successful
    bench.until(lambda: len(lines) > 1, "the new settings")
    assert Provenance.from_json(lines[-1].data).settings.gate.delta == 0.25


def test_lifecycle_there_and_back_loads_once(make):
    loads = []

    def factory(settings: Settings) -> LoadedPolicy:
        loads.append(settings.model)
        return LoadedPolicy(ScriptedPolicy())

    bench = make(factory=PolicyFactory(factory), control__image_timeout_s=10.0)
    assert bench.state() == "unconfigured"
    bench.start()
    assert bench.state() == "active"
    bench.step()
    bench.node.trigger_deactivate()
    assert bench.state() == "inactive"
    bench.until(lambda: len(bench.commands) == 2, "the stop action")
    commands, gates = len(bench.commands), len(bench.gates)
    bench.show()
    bench.spin(0.2)
    assert (len(bench.commands), len(bench.gates)) == (commands, gates)
    assert bench.activate()
    assert bench.step().step == 0
    assert len(loads) == 1
    bench.node.trigger_deactivate()
    bench.node.trigger_cleanup()
    assert bench.state() == "unconfigured"
    assert bench.node.count_publishers("/command") == 0
    bench.start()
    bench.step()
    assert len(loads) == 2


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CheckpointError("there is no checkpoint folder /nowhere"), "there is no checkpoint folder /nowhere"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "the node needs torch, which is not installed"),
    ],
)
def test_a_checkpoint_that_cannot_be_loaded_leaves_a_live_inactive_node(make, error, line):
    def factory(_: Settings) -> LoadedPolicy:
        raise error

    bench = make(factory=PolicyFactory(factory))
    assert bench.configure()
    assert not bench.activate()
    assert bench.state() == "inactive"
    assert bench.log_line(line).startswith(line)
    assert bench.report().state == "waiting"


def test_a_programming_error_while_loading_leaves_an_unconfigured_node_and_a_traceback(make):
    def factory(_: Settings) -> LoadedPolicy:
        raise ZeroDivisionError("oops")

    bench = make(factory=PolicyFactory(factory))
    assert bench.configure()
    assert not bench.activate()
    assert bench.state() == "unconfigured"
    assert "Traceback" in bench.log_line("ZeroDivisionError: oops")


def test_another_action_size_is_refused_with_both(make):
    bench = make(ScriptedPolicy(actions=[[0.0] * 7]))
    assert bench.configure()
    assert not bench.activate()
    bench.until(lambda: bench.logged("has 7 dimensions but action.names declares 4"), "the error")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"action__names": ["x", "y", "yaw", "gripper"]}, ["'rx', 'ry', 'rz'", "rename ['yaw']"]),
        ({"action__kinds": ["delta", "absolute", "delta", "gripper"]}, ["['y'] absolute", "Float64MultiArray"]),
        ({"action__kinds": ["delta", "delta", "gripper", "gripper"]}, ["one value", "['z', 'gripper']"]),
        ({"action__kinds": ["delta", "delta"]}, ["4 entries", "action.kinds has 2"]),
        ({"node__instruction": "x" * 10_000}, ["at most 1000 characters", "got 10000"]),
    ],
)
def test_what_cannot_be_commanded_is_refused_at_configure(make, parameters, words):
    bench = make(**parameters)
    assert not bench.configure()
    assert bench.state() == "unconfigured"
    line = bench.log_line(words[0])
    for word in words:
        assert word in line


def test_autostart_configures_and_activates_when_the_executor_starts(make):
    bench = make(node__autostart=True)
    bench.until(lambda: bench.state() == "active", "activation")
    assert bench.node.failure == ""


def test_autostart_that_fails_says_why(make):
    def factory(_: Settings) -> LoadedPolicy:
        raise CheckpointError("there is no checkpoint folder /nowhere")

    bench = make(node__autostart=True, factory=PolicyFactory(factory))
    bench.until(lambda: bench.node.failure, "the failure")
    assert bench.node.failure == "there is no checkpoint folder /nowhere"


def test_the_overlay_is_drawn_for_whoever_watches(make):
    bench = make(control__image_timeout_s=10.0).start()
    pictures: list[Any] = []
    topic = interfaces.OVERLAY
    bench.robot.create_subscription(topic.type, "/flashvla/overlay/compressed", pictures.append, topic.qos)
    bench.until(lambda: bench.node.count_subscribers("/flashvla/overlay/compressed"), "the watcher")
    bench.until(lambda: bench.step() and pictures, "a picture")
    assert pictures[0].format == "rgb8; jpeg compressed bgr8"
    assert pictures[0].header.frame_id == "camera"
