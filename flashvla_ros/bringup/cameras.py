"""Which cameras a bringup has: a real robot's topics by name, or those that a simulated one is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.parameter import Value
from flashvla_ros.sim.libero.protocol import CAMERAS

_COMPRESSED = "/compressed"


def parse(text: str) -> tuple[dict[str, str], str]:
    """Return each camera's topic by its name, empty where it has none, and how their topics end.

    Raises:
        SettingsError: The text has another form, or not all topics end alike.
    """
    words = text.split()
    if len(words) == 1 and ":=" not in text:
        cameras = {"": words[0]}
    else:
        cameras = {}
        for word in words:
            name, arrow, topic = word.partition(":=")
            if not (name and arrow and topic) or name in cameras:
                raise SettingsError(
                    f"several cameras have the form name:=topic, such as front:=/front/image_raw "
                    f"wrist:=/wrist/image_raw, each with a name of its own, got {word!r}"
                )
            cameras[name] = topic
    topics = sorted(cameras.values())
    compressed = [topic for topic in topics if topic.endswith(_COMPRESSED)]
    if compressed and len(compressed) < len(topics):
        raise SettingsError(f"cameras are all raw or all compressed, but of {topics} only {compressed} are")
    return cameras, _COMPRESSED if compressed else ""


def simulated(names: Sequence[str]) -> dict[str, Value]:
    """Return the robot node's parameters for a policy node that listens to these cameras.

    Raises:
        SettingsError: The simulated robot does not have them.
    """
    front, hand = CAMERAS
    if sorted(names) == sorted(CAMERAS):
        return {"cameras": len(CAMERAS)}
    if len(names) > 1 or hand in names:
        raise SettingsError(
            f"camera.names: the simulated robot has {front} and {hand}, or a camera in front of any other name, "
            f"got {', '.join(names)}"
        )
    return {"camera": names[0]} if names else {}
