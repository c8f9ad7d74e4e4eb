"""The parameter table as ROS parameters: declared once, checked as a whole, read as one immutable snapshot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterNotDeclaredException
from rclpy.node import Node
from rclpy.parameter import Parameter

from flashvla_ros.core import settings as table
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.parameter import Parameter as Row
from flashvla_ros.core.parameter import find
from flashvla_ros.core.settings import Settings

_TYPES = {
    "bool": Parameter.Type.BOOL,
    "int": Parameter.Type.INTEGER,
    "float": Parameter.Type.DOUBLE,
    "str": Parameter.Type.STRING,
    "float_array": Parameter.Type.DOUBLE_ARRAY,
    "str_array": Parameter.Type.STRING_ARRAY,
}
_ROWS = {row.name: row for row in table.PARAMETERS}


class RefusedParameterError(ParameterNotDeclaredException):
    """A set with an unknown name or a wrong type.

    rclpy's parameter services turn this one exception into a reason, and their own reasons for these two cases name
    neither the parameter nor the type (it prints an empty list, and the number of the type).
    """

    def __init__(self, reason: str) -> None:
        Exception.__init__(self, reason)


class NodeParameters:
    """Declares the table on a node and holds the settings in force, equal to the node's parameters.

    A set is checked against a candidate built from the snapshot (nothing changes where it is refused) and swapped in
    after rclpy has stored it. Reading :attr:`settings` from another thread needs no lock: it is one reference.
    """

    def __init__(
        self,
        node: Node,
        *,
        check: Callable[[Settings], None] = lambda _: None,
        changing: Callable[[Settings], AbstractContextManager[object]] = nullcontext,
        along: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {},
    ) -> None:
        """Declare every parameter with the values given at start.

        Args:
            node: Whose parameters they become.
            check: Raises SettingsError for a candidate that the table allows but this node cannot do.
            changing: Gets every new snapshot; it comes into force within the context that this returns.
            along: Returns what is to be set along with some values, such as thresholds that stay in force.

        Raises:
            SettingsError: A value given at start is unknown, of the wrong type, out of range or at odds with another.
        """
        self.settings = Settings().with_values(given_at_start(node, _ROWS))
        # Callbacks come after: rclpy would run them once for each parameter, with the others still missing.
        for name, value in self.settings.values().items():
            declare(node, table.find(name), value)
        self.node = node
        self._check_candidate = check
        self._changing = changing
        self._along = along
        node.add_pre_set_parameters_callback(self._convert)
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._apply)

    def put(self, values: Mapping[str, Any]) -> None:
        """Set parameters from inside the node.

        Raises:
            SettingsError: A value is refused; none is set.
        """
        if not values:
            return
        parameters = [Parameter(name, _TYPES[table.find(name).kind], value) for name, value in values.items()]
        result = self.node.set_parameters_atomically(parameters)
        if not result.successful:
            raise SettingsError(result.reason)

    def _convert(self, parameters: Sequence[Parameter[Any]]) -> list[Parameter[Any]]:
        for parameter in parameters:
            if parameter.name not in _ROWS and not self.node.has_parameter(parameter.name):
                try:
                    table.find(parameter.name)
                except SettingsError as error:
                    raise RefusedParameterError(str(error)) from error
        converted = [_converted(parameter) if parameter.name in _ROWS else parameter for parameter in parameters]
        given = {parameter.name: parameter.value for parameter in converted}
        more = {name: value for name, value in self._along(given).items() if name not in given}
        return [*converted, *(Parameter(name, _TYPES[table.find(name).kind], value) for name, value in more.items())]

    def _check(self, parameters: Sequence[Parameter[Any]]) -> SetParametersResult:
        try:
            self._check_candidate(self.settings.with_values(_known_values(parameters)))
        except SettingsError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _apply(self, parameters: Sequence[Parameter[Any]]) -> None:
        before = self.settings.values()
        values = {name: value for name, value in _known_values(parameters).items() if before[name] != value}
        if values:  # ros2 param load sets each one by itself, most of them to what they are
            settings = self.settings.with_values(values)
            words = ", ".join(f"{name} = {value}" for name, value in values.items())
            self.node.get_logger().info(f"from the next step on: {words}")
            with self._changing(settings):
                self.settings = settings


def describe(row: Row) -> ParameterDescriptor:
    """Return what a parameter tool shows of one row of the table."""
    descriptor = ParameterDescriptor(
        type=_TYPES[row.kind].value,
        description=f"{row.description} [{row.unit}]" if row.unit else row.description,
        additional_constraints=row.rule,
        read_only=row.fixed,
    )
    if row.low is not None:
        if row.kind == "int":
            most = 2**63 - 1 if row.high is None else int(row.high)
            descriptor.integer_range = [IntegerRange(from_value=int(row.low), to_value=most)]
        elif row.kind == "float":
            high = sys.float_info.max if row.high is None else float(row.high)
            descriptor.floating_point_range = [FloatingPointRange(from_value=float(row.low), to_value=high)]
    return descriptor


def declare(node: Node, row: Row, value: Any) -> None:
    """Declare one parameter, whose value at start has been checked."""
    if not row.kind.endswith("_array"):
        node.declare_parameter(row.name, value=value, descriptor=describe(row), ignore_override=True)
        return
    # rclpy takes an empty list for an array of bytes, so the type must be set by hand before it is fixed.
    node.declare_parameter(row.name, descriptor=ParameterDescriptor(dynamic_typing=True), ignore_override=True)
    node.set_parameters([Parameter(row.name, _TYPES[row.kind], list(value))])
    node.set_descriptor(row.name, describe(row))


def given_at_start(node: Node, rows: Mapping[str, Row]) -> dict[str, Any]:
    """Return what files and arguments set for this node, by the names of its rows.

    rclpy shows these values only through a declaration, which fails for an empty list (it has no type in YAML) and for
    an integer where a double is declared; hence its attribute.

    Raises:
        SettingsError: A name is unknown.
    """
    given: Mapping[str, Parameter[Any]] = node._parameter_overrides
    for name in given:
        if name not in rows and not node.has_parameter(name) and not name.startswith("qos_overrides."):
            find(rows, name)  # raises, and names the parameters that are close
    return {name: row.from_yaml(given[name].value) for name, row in rows.items() if name in given}


def _known_values(parameters: Iterable[Parameter[Any]]) -> dict[str, Any]:
    """Return table values by name; a node has other parameters too (use_sim_time), which are not ours to judge."""
    return {
        parameter.name: table.find(parameter.name).from_yaml(parameter.value)
        for parameter in parameters
        if parameter.name in _ROWS
    }


def _converted(parameter: Parameter[Any]) -> Parameter[Any]:
    """Give a value the type of its row where that loses nothing (1 for 1.0); leave bad values to be refused."""
    row = table.find(parameter.name)
    try:
        value = row.parse(row.from_yaml(parameter.value))
    except SettingsError as error:
        if parameter.type_ is not _TYPES[row.kind]:
            raise RefusedParameterError(str(error)) from error
        return parameter
    return Parameter(parameter.name, _TYPES[row.kind], list(value) if isinstance(value, tuple) else value)
