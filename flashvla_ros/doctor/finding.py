"""What the doctor found, one line for each thing it looked at."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator

from flashvla_ros.core.errors import FlashVLAError


class Level(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # works, but not as well as it could, or not for every use
    FAILURE = "failure"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is, such as "GPU".
        level: How bad it is.
        text: What was found.
        remedy: What to do, empty where nothing is to be done.
    """

    name: str
    level: Level
    text: str
    remedy: str = ""

    @classmethod
    def failure_of(cls, name: str, error: FlashVLAError) -> Finding:
        """Turn an error into a finding; its message ends with the remedy."""
        return cls(name, Level.FAILURE, str(error))


def ok(name: str, text: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(name, Level.OK, text)


def render(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield the lines to print."""
    marks = {Level.OK: "ok  ", Level.WARNING: "warn", Level.FAILURE: "FAIL"}
    for finding in findings:
        yield f"{marks[finding.level]}  {finding.name:<12}  {finding.text}"
        if finding.remedy:
            yield f"      {'':<12}  → {finding.remedy}"
