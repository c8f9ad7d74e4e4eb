"""What an architecture tells of itself to the code that knows none by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flashvla_ros.core.settings import ModelSettings
from flashvla_ros.vla.checkpoint import Progress
from flashvla_ros.vla.step import VLAPolicy


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One way to make actions of the shared network.

    Attributes:
        title: Its name, for people.
        recognises: Whether the files of a folder are of this architecture alone.
        load: Returns its policy; raises CheckpointError or SettingsError.
    """

    title: str
    recognises: Callable[[Path], bool]
    load: Callable[[ModelSettings, Progress | None], VLAPolicy]
