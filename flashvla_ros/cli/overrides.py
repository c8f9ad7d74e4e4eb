"""``--set name=value`` on the command line: text to parameters of the table."""

from __future__ import annotations

from collections.abc import Iterable

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import parse_json
from flashvla_ros.core.parameter import Value
from flashvla_ros.core.settings import find


def parse_overrides(arguments: Iterable[str]) -> dict[str, Value]:
    """Read ``name=value`` arguments; lists are written as in JSON or with commas alone.

    Raises:
        SettingsError: One has another form, or names no parameter, or a value that it cannot have.
    """
    values = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        if not separator:
            raise SettingsError(f"--set takes NAME=VALUE such as gate.delta=0.9, got {argument!r}")
        values[name] = _value(name, text)
    return values


def _value(name: str, text: str) -> Value:
    row = find(name)
    if row.kind == "str":
        return row.parse(text)
    if row.kind == "str_array" and not text.startswith("["):
        return row.parse([part for part in text.split(",") if part])
    if row.kind == "float_array" and not text.startswith("["):
        text = f"[{text}]"
    try:
        return row.parse(parse_json(text))
    except ValueError as error:
        raise SettingsError(f"{name} must be of type {row.kind}, got {text!r}") from error
