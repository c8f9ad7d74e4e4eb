"""What a parameter is: a row with name, type, default, unit, range and description, and the checks of its values.

A group of parameters is a frozen dataclass whose fields are made by :func:`row`; :func:`rows_of` reads the rows back.
Nothing here knows ROS, or which parameters there are.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flashvla_ros.core.errors import SettingsError, unknown_name

Value = bool | int | float | str | tuple[float, ...] | tuple[str, ...]
Validator = Callable[[str, Any], None]  # gets a parameter's name and converted value, raises SettingsError

_TOPIC = re.compile(r"/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of a table; ``low``, ``high`` and ``choices`` hold for each element of an array."""

    name: str
    default: Value
    kind: str  # bool | int | float | str | float_array | str_array
    description: str
    unit: str = ""
    low: float | None = None  # inclusive
    high: float | None = None  # inclusive; a row with it has `low` too
    choices: tuple[str, ...] = ()
    fixed: bool = False  # read at start alone; every other parameter may change between two steps
    per_dimension: bool = False  # an array with one value for each dimension of the action, or none
    validator: Validator | None = None

    @property
    def rule(self) -> str:
        """The constraint in words, empty where there is none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.low is None:
            return ""
        return f"at least {self.low:g}" if self.high is None else f"from {self.low:g} to {self.high:g}"

    def parse(self, value: Any) -> Value:
        """Return `value` in this parameter's own type, or raise :class:`SettingsError` naming the broken rule."""
        converted = _convert(self, value)
        for element in converted if isinstance(converted, tuple) else (converted,):
            if isinstance(element, float) and not math.isfinite(element):
                raise SettingsError(f"{self.name} must be finite, got {value!r}")
            if self.choices and element not in self.choices:
                raise SettingsError(f"{self.name} must be {self.rule}, got {element!r}")
            if isinstance(element, (int, float)) and not isinstance(element, bool) and not self._in_range(element):
                unit = f" {self.unit}" if self.unit else ""
                raise SettingsError(f"{self.name} must be {self.rule}{unit}, got {element!r}")
        if self.validator is not None:
            self.validator(self.name, converted)
        return converted

    def from_yaml(self, value: Any) -> Any:
        """Undo what YAML 1.1 does to a value: the word ``off`` becomes false, and ``[]`` has no type."""
        if self.kind == "str" and isinstance(value, bool):
            word = "on" if value else "off"
            return word if word in self.choices else value
        return () if value is None and self.kind.endswith("_array") else value

    def _in_range(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


def row(default: Any, description: str, **rule: Any) -> Any:
    """Return a dataclass field that carries its row of the table; `rule` holds further fields of :class:`Parameter`."""
    return dataclasses.field(default=default, metadata={"description": description, **rule})


def rows_of(group: Any, prefix: str = "") -> Iterator[Parameter]:
    """Yield the rows of a dataclass made of :func:`row`; names begin with `prefix`."""
    for field in dataclasses.fields(group):
        default: Any = field.default
        kind = type(default).__name__
        if isinstance(default, tuple):
            kind = "float_array" if "float" in str(field.type) else "str_array"
        yield Parameter(f"{prefix}{field.name}", default, kind, **field.metadata)


def find(rows: Mapping[str, Parameter], name: str) -> Parameter:
    """Return the row of a parameter, or raise :class:`SettingsError` with the names close to it, if any."""
    if name not in rows:
        raise SettingsError(unknown_name("parameter", name, sorted(rows), "docs/parameters.md and docs/ros2.md"))
    return rows[name]


def topic_names(name: str, values: tuple[str, ...]) -> None:
    """Refuse names that repeat or cannot begin the name of a topic."""
    if len(set(values)) != len(values):
        raise SettingsError(f"{name} must be distinct, got {list(values)}")
    for value in values:
        if not _TOPIC.fullmatch(value):
            raise SettingsError(
                f"{name}: {value!r} cannot begin a topic's name, which has letters, digits and underscores "
                "between slashes, and no digit first"
            )


def three_axes(name: str, values: tuple[float, ...]) -> None:
    """Refuse a point of another size than x, y and z; empty is none."""
    if len(values) not in (0, 3):
        raise SettingsError(f"{name} must have 3 values, for x, y and z, or none, got {len(values)}")


def weights_of_score(name: str, values: tuple[float, ...]) -> None:
    """Refuse weights that are not those of :data:`flashvla_ros.gate.score.SIGNS` and a constant; empty is none."""
    if len(values) not in (0, 8):
        raise SettingsError(
            f"{name} must have 8 values, as flashvla-ros tune --score writes them, or none, got {len(values)}"
        )


def open_and_closed(name: str, values: tuple[float, ...]) -> None:
    """Refuse what is not two different values, or none."""
    if values and (len(values) != 2 or values[0] == values[1]):
        raise SettingsError(f"{name} must be [open, closed], two different values, or empty, got {list(values)}")


def _convert(parameter: Parameter, value: Any) -> Value:
    """Check the type; an int is a fine float, a bool is neither."""
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        sequence = list(value)
        if parameter.kind == "float_array" and all(_is_number(element) for element in sequence):
            return tuple(float(element) for element in sequence)
        if parameter.kind == "str_array" and all(isinstance(element, str) for element in sequence):
            return tuple(sequence)
    elif parameter.kind == "float" and _is_number(value):
        return float(value)
    elif parameter.kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif parameter.kind == "bool" and isinstance(value, bool):
        return value
    elif parameter.kind == "str" and isinstance(value, str):
        return value
    raise SettingsError(f"{parameter.name} must be of type {parameter.kind}, got {value!r}")


def _is_number(value: Any) -> bool:
    """Whether a float can hold it, which no integer above 1.8e308 is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)
