"""Which topic of a recording plays which part: the node's own names, remapped ones, or the only one of its type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from flashvla_ros.bags.reader import Bag
from flashvla_ros.core.errors import BagError

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
STRING = "std_msgs/msg/String"

_TYPES: Mapping[str, tuple[str, ...]] = {
    "instruction": (STRING,),
    "joint_states": ("sensor_msgs/msg/JointState",),
    "end_effector_pose": ("geometry_msgs/msg/PoseStamped",),
    "emergency_stop": ("std_msgs/msg/Bool",),
    "gate": ("flashvla_ros/msg/GateStatus",),
    "settings": (STRING,),
}


@dataclasses.dataclass(frozen=True)
class Topics:
    """The topics of a recording by the part that they play; None where the recording has none.

    Attributes:
        images: Camera to topic.
        gate: What the node decided at each step.
        settings: The node's parameters, weights and platform.
        notes: Sentences on what was assumed.
    """

    images: Mapping[str, str]
    instruction: str | None
    joint_states: str | None
    end_effector_pose: str | None
    emergency_stop: str | None
    gate: str | None
    settings: str | None
    notes: tuple[str, ...] = ()


def parse_remappings(arguments: Sequence[str]) -> dict[str, str]:
    """Read ``role=/topic`` arguments.

    Raises:
        BagError: One of them has another form.
    """
    remappings = {}
    for argument in arguments:
        role, _, topic = argument.partition("=")
        if not role or not topic.startswith("/"):
            raise BagError(f"--topic takes ROLE=/TOPIC, such as image=/camera/color/image_raw, got {argument!r}")
        remappings[role] = topic
    return remappings


def find_topics(bag: Bag, remappings: Mapping[str, str], node: str, cameras: Sequence[str] | None) -> Topics:
    """Find the parts of a recording of the policy node, or of cameras alone.

    Args:
        bag: The recording.
        remappings: Role to topic, for topics with other names than the node's defaults.
        node: Full name of the policy node.
        cameras: The parameter ``camera.names``; None: nobody knows yet, and no images are looked for.

    Raises:
        BagError: There are no images, a topic has the wrong type, or a remapping names what is not there.
    """
    namespace = node.rpartition("/")[0]
    image_roles = {camera: f"{camera}/image" for camera in cameras or ()} or {"image": "image"}
    unknown = set(remappings) - set(_TYPES) - set(image_roles.values())
    if cameras is None:
        image_roles = {}
    elif unknown:
        known = ", ".join([*image_roles.values(), *_TYPES])
        raise BagError(f"--topic {min(unknown)}=…: the roles are {known}")
    notes: list[str] = []

    def find(role: str, default: str, alone: bool) -> str | None:
        types = _TYPES.get(role, IMAGE_TYPES)
        defaults = (default, f"{default}/compressed") if role not in _TYPES else (default,)
        name = remappings.get(role) or next((name for name in defaults if name in bag.topics), None)
        if name is not None:
            _check(bag, role, name, types)
            return name
        candidates = [
            topic.name for topic in bag.topics.values() if topic.type in types and "overlay" not in topic.name
        ]
        if not alone or len(candidates) != 1:
            return None
        notes.append(f"{role}: {candidates[0]}, the only topic of its type")
        return candidates[0]

    images = {}
    for camera, role in image_roles.items():
        topic = find(role, f"{namespace}/{role}", alone=len(image_roles) == 1)
        if topic is None:
            raise BagError(_no_images(bag, role))
        images[camera] = topic
    gate = find("gate", f"{node}/gate", alone=True)
    own = gate.rpartition("/")[0] if gate else node
    state = ("instruction", "joint_states", "end_effector_pose", "emergency_stop")
    others = {role: find(role, f"{namespace}/{role}", False) for role in state}
    return Topics(images, **others, gate=gate, settings=find("settings", f"{own}/settings", False), notes=tuple(notes))


def _check(bag: Bag, role: str, name: str, types: tuple[str, ...]) -> None:
    topic = bag.topics.get(name)
    if topic is None:
        raise BagError(f"{bag.path} has no topic {name}; it has {_describe(bag)}")
    if topic.type not in types:
        raise BagError(f"{role}: {name} in {bag.path} is a {topic.type}, not {' or '.join(types)}")
    if topic.count == 0 and role not in _TYPES:
        raise BagError(f"{bag.path} has no messages on {name}; it has {_describe(bag)}")


def _no_images(bag: Bag, role: str) -> str:
    if not any(topic.count for topic in bag.topics.values()):
        return f"{bag.path} has no messages"
    return f"{bag.path} has no topic for {role}; it has {_describe(bag)}: name one with --topic {role}=/TOPIC"


def _describe(bag: Bag) -> str:
    topics = sorted(bag.topics.values(), key=lambda topic: topic.name)
    return ", ".join(f"{topic.name} ({topic.type.split('/')[-1]}, {topic.count})" for topic in topics) or "no topics"
