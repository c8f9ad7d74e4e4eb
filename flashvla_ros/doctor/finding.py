"""What the doctor found, one line for each thing it looked at."""

from __future__ import annotations

import dataclasses
import enum

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

    def __str__(self) -> str:
        """Return what is printed, the remedy on a line of its own."""
        mark = {Level.OK: "ok  ", Level.WARNING: "warn", Level.FAILURE: "FAIL"}[self.level]
        remedy = f"\n      {'':<12}  → {self.remedy}" if self.remedy else ""
        return f"{mark}  {self.name:<12}  {self.text}{remedy}"

    @classmethod
    def failure_of(cls, name: str, error: FlashVLAError) -> Finding:
        """Turn an error into a finding; its message ends with the remedy."""
        return cls(name, Level.FAILURE, str(error))


def ok(name: str, text: str) -> Finding:
    """Say that something is as it should be."""
    return Finding(name, Level.OK, text)
