"""What a policy server is sent and what its answers mean: the group ``remote`` of the parameters."""

from __future__ import annotations

import dataclasses

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.parameter import row


def state_rows(name: str, values: tuple[str, ...]) -> None:
    """Refuse what has not the form ``KEY: NAME NAME …``."""
    for value in values:
        key, colon, names = value.partition(":")
        if not (key.strip() and colon and names.split()):
            raise SettingsError(f"{name} has entries of the form 'KEY: NAME NAME …', got {value!r}")


def distinct_keys(name: str, values: tuple[str, ...]) -> None:
    """Refuse no key, an empty one, or one given twice."""
    if not values or not all(values) or len(set(values)) != len(values):
        raise SettingsError(f"{name} must be distinct keys, at least one, got {list(values)}")


def positive(name: str, values: tuple[float, ...]) -> None:
    """Refuse a value that is not above 0."""
    if values and min(values) <= 0.0:
        raise SettingsError(f"{name} must be above 0, got {list(values)}")


@dataclasses.dataclass(frozen=True)
class RemoteSettings:
    """How a policy server names things; config/openpi_*.yaml have those of openpi's examples."""

    images: tuple[str, ...] = row(
        ("observation/image",),
        "Key of each camera's image, in the order of camera.names; a dot stands between a map and a key in it.",
        fixed=True,
        validator=distinct_keys,
    )
    image_size: int = row(
        224,
        "Side of the square that an image is resized to, keeping its shape, and padded with black; 0: as it comes.",
        unit="pixel",
        low=0,
        high=4096,
        fixed=True,
    )
    channels_first: bool = row(False, "Send images as [3, H, W] instead of [H, W, 3].", fixed=True)
    state: tuple[str, ...] = row(
        (),
        "Vectors of the robot's state, each as 'KEY: NAME NAME …'; names are joints, or x y z, rx ry rz, qx qy qz qw "
        "and the rotation vector ax ay az of end_effector_pose.",
        fixed=True,
        validator=state_rows,
    )
    prompt: str = row("prompt", "Key of the instruction.", fixed=True)
    actions: str = row("actions", "Key of the chunk [T, D] in an answer.", fixed=True)
    rows: int = row(
        0, "Time steps of an answer's chunk that are followed, the first ones; 0: all.", low=0, high=10_000, fixed=True
    )
    scale: tuple[float, ...] = row(
        (),
        "Size of each dimension that counts as 1 to the gate, which compares normalised actions; empty: 1.",
        unit="command units",
        fixed=True,
        per_dimension=True,
        validator=positive,
    )
    api_key_file: str = row(
        "", "File with the server's API key; empty: the environment variable FLASHVLA_API_KEY, if any.", fixed=True
    )
    ca_file: str = row("", "Certificate (PEM) to trust for wss://; empty: those that the system trusts.", fixed=True)
