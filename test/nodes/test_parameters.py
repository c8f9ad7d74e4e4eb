"""The parameter table on a real node, set through the node's own parameter service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import rclpy
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PARAMETERS, Settings
from flashvla_ros.nodes.parameters import NodeParameters


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(context=context)
    yield context
    rclpy.try_shutdown(context=context)


class Client:
    """A parameter tool: another node that calls the services of `node`."""

    def __init__(self, node: Node) -> None:
        self._executor = SingleThreadedExecutor(context=node.context)
        self._node = Node("tool", context=node.context)
        self._executor.add_node(node)
        self._executor.add_node(self._node)
        self._client = AsyncParameterClient(self._node, node.get_name())
        self._atomic = self._node.create_client(SetParametersAtomically, f"{node.get_name()}/set_parameters_atomically")
        assert self._client.wait_for_services(10)

    def call(self, future):
        self._executor.spin_until_future_complete(future, 10)
        return future.result()

    def set(self, name, value):
        [result] = self.call(self._client.set_parameters([Parameter(name, value=value)])).results
        return result

    def set_together(self, **values):
        request = SetParametersAtomically.Request()
        request.parameters = [
            Parameter(name.replace("__", "."), value=value).to_parameter_msg() for name, value in values.items()
        ]
        return self.call(self._atomic.call_async(request)).result

    def describe(self, name):
        return self.call(self._client.describe_parameters([name])).descriptors[0]

    def get(self, name):
        return self.call(self._client.get_parameters([name])).values[0]

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()


@pytest.fixture
def node(context) -> Iterator[Node]:
    node = Node("flashvla", context=context)
    yield node
    node.destroy_node()


@pytest.fixture
def parameters(node) -> NodeParameters:
    return NodeParameters(node)


@pytest.fixture
def client(parameters) -> Iterator[Client]:
    client = Client(parameters.node)
    yield client
    client.close()


def start(context: Context, *arguments: str) -> Settings:
    node = Node("flashvla", context=context, cli_args=["--ros-args", *arguments])
    try:
        return NodeParameters(node).settings
    finally:
        node.destroy_node()


def start_with(context: Context, tmp_path: Path, yaml: str) -> Settings:
    path = tmp_path / "params.yaml"
    path.write_text(f"/flashvla:\n  ros__parameters:\n{yaml}")
    return start(context, "--params-file", str(path))


def test_every_row_is_declared_with_its_default_and_described(node, parameters):
    assert parameters.settings == Settings()
    for row in PARAMETERS:
        value = node.get_parameter(row.name).value
        assert row.parse(value) == row.default, row.name
        descriptor = node.describe_parameter(row.name)
        assert descriptor.read_only is row.fixed
        assert row.description in descriptor.description
        assert descriptor.additional_constraints == row.rule


def test_descriptors_carry_type_and_range(client):
    delta = client.describe("gate.delta")
    assert delta.type == ParameterType.PARAMETER_DOUBLE
    assert (delta.floating_point_range[0].from_value, delta.floating_point_range[0].to_value) == (0.0, 1.0)
    layer = client.describe("pruning.layer")
    assert (layer.integer_range[0].from_value, layer.integer_range[0].to_value) == (0, 128)
    assert client.describe("limits.lower").type == ParameterType.PARAMETER_DOUBLE_ARRAY
    assert client.get("camera.names").type == ParameterType.PARAMETER_STRING_ARRAY


def test_a_set_replaces_the_snapshot(client, parameters):
    before = parameters.settings
    assert client.set("gate.delta", 0.9).successful
    assert parameters.settings.gate.delta == 0.9
    assert before.gate.delta == 0.5


def test_an_integer_is_a_fine_double(client, parameters):
    assert client.set("gate.delta", 1).successful
    assert parameters.settings.gate.delta == 1.0
    assert client.get("gate.delta").type == ParameterType.PARAMETER_DOUBLE
    assert client.set("limits.upper", [1, 2, 3, 4]).successful
    assert parameters.settings.limits.upper == (1.0, 2.0, 3.0, 4.0)


def test_an_empty_list_clears_a_limit(client, parameters):
    assert client.set("limits.upper", [1.0, 2.0, 3.0, 4.0]).successful
    assert client.set("limits.upper", []).successful
    assert parameters.settings.limits.upper == ()


def test_off_is_a_word_though_yaml_reads_a_boolean(client, parameters, context):
    assert client.set("gate.mode", False).successful
    assert parameters.settings.gate.mode == "off"
    assert start(context, "-p", "gate.mode:=off").gate.mode == "off"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gate.delta", 1.5, ["gate.delta", "0.0", "1.0", "1.5"]),
        ("gate.delta", float("nan"), ["gate.delta"]),
        ("gate.delta", 1.0000001, ["gate.delta", "from 0 to 1"]),
        ("gate.delta", "wide", ["gate.delta must be of type float", "wide"]),
        ("gate.mode", "fast", ["gate.mode", "off, paper, guarded", "fast"]),
        ("limits.lower", [0.0], ["limits.lower", "4 values"]),
        ("limits.max_step", [0.1, -1.0, 0.1, 0.1], ["limits.max_step", "at least 0", "-1"]),
        ("model.device", "cpu", ["read-only", "model.device"]),
        ("gate.detla", 0.5, ["'gate.detla'", "did you mean gate.delta"]),
    ],
)
def test_a_refused_value_says_which_rule_it_broke_and_changes_nothing(client, parameters, name, value, words):
    before = parameters.settings
    result = client.set(name, value)
    assert not result.successful
    for word in words:
        assert word in result.reason
    assert parameters.settings is before


def test_parameters_set_together_are_judged_together(client, parameters):
    assert client.set("limits.upper", [1.0] * 4).successful
    result = client.set("limits.lower", [2.0] * 4)
    assert not result.successful
    assert "exceeds limits.upper" in result.reason
    assert client.set("limits.upper", [0.0] * 4).successful
    assert not client.set_together(limits__lower=[0.0] * 4, limits__upper=[-1.0] * 4).successful
    assert client.set_together(limits__lower=[-2.0] * 4, limits__upper=[3.0] * 4).successful
    refused = client.set_together(limits__lower=[0.0] * 4, gate__delta=7.0)
    assert not refused.successful
    assert parameters.settings.limits.lower == (-2.0,) * 4


def test_other_parameters_of_the_node_are_left_alone(client):
    assert client.set("use_sim_time", True).successful


def test_values_at_start_come_from_file_and_arguments(context, tmp_path):
    settings = start_with(
        context,
        tmp_path,
        "    use_sim_time: true\n    gate:\n      delta: 1\n      mode: off\n    limits:\n      lower: []\n"
        "      upper: [1, 2, 3, 4]\n    camera.names: []\n",
    )
    assert (settings.gate.delta, settings.gate.mode) == (1.0, "off")
    assert (settings.limits.lower, settings.limits.upper) == ((), (1.0, 2.0, 3.0, 4.0))
    assert start(context, "-p", "model.device:=cpu").model.device == "cpu"


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("    gate.delta: 1.5", ["gate.delta", "from 0 to 1", "1.5"]),
        ("    gate.detla: 0.5", ["'gate.detla'", "did you mean gate.delta"]),
        ("    gate:\n      mode: quick", ["gate.mode", "guarded", "quick"]),
        ("    pruning.layer: 2.5", ["pruning.layer", "int", "2.5"]),
        ("    limits.lower: [0.0]", ["limits.lower", "4 values"]),
        ("    model.checkpoint: 7", ["model.checkpoint", "str", "7"]),
        ("    camera.names: front", ["camera.names", "str_array", "front"]),
    ],
)
def test_a_bad_value_at_start_is_named(context, tmp_path, yaml, words):
    with pytest.raises(SettingsError) as caught:
        start_with(context, tmp_path, yaml)
    for word in words:
        assert word in str(caught.value)


def test_a_set_that_changes_nothing_is_not_told(node):
    changes: list[Settings] = []
    client = Client(NodeParameters(node, changing=lambda settings: nullcontext(changes.append(settings))).node)
    for value in (0.9, 0.9, 1, 1.0):
        assert client.set("gate.delta", value).successful
    client.close()
    assert [change.gate.delta for change in changes] == [0.9, 1.0]
