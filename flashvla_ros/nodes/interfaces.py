"""Every topic and service of the policy node, once: name, type, quality of service.

The node opens these rows and ``docs/interface.md`` is checked against them. Types are given as the message classes,
so that a misspelt one cannot be imported.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, HistoryPolicy, LivelinessPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Bool, Float64, String

from flashvla_ros.core.settings import CameraSettings
from flashvla_ros.messages.commands import COMMAND_TYPES
from flashvla_ros.msg import EpisodeStatus, GateStatus, PolicyStatus


@dataclasses.dataclass(frozen=True)
class Interface:
    """One topic.

    Attributes:
        name: Relative to the node's namespace, or private (``~/``), or absolute.
        types: The message types it may have; a parameter chooses where there is more than one.
        depth: Messages kept for a slow reader.
        reliable: Lost messages are sent again; a best-effort subscription connects to every publisher.
        latched: A late subscriber gets the last message (transient local).
        lease_s: Time within which a reader that asks for it hears that the publisher's process does not run; 0: never.
    """

    name: str
    types: tuple[type[Any], ...]
    depth: int = 10
    reliable: bool = True
    latched: bool = False
    lease_s: float = 0.0

    @property
    def type(self) -> type[Any]:
        """The only type, or the default one."""
        return self.types[0]

    @property
    def qos(self) -> QoSProfile:
        """Quality of service of this topic."""
        return QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self.depth,
            reliability=ReliabilityPolicy.RELIABLE if self.reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if self.latched else DurabilityPolicy.VOLATILE,
            liveliness=LivelinessPolicy.AUTOMATIC,
            liveliness_lease_duration=Duration(nanoseconds=round(self.lease_s * 1e9)),
        )


# The emergency stop is subscribed first: a single-threaded executor takes what is ready in this order, so a stop that
# waits together with an image wins.
EMERGENCY_STOP = Interface("emergency_stop", (Bool,))
INSTRUCTION = Interface("instruction", (String,))
JOINT_STATES = Interface("joint_states", (JointState,), reliable=False)  # an arm's and a gripper's driver
END_EFFECTOR_POSE = Interface("end_effector_pose", (PoseStamped,), depth=1, reliable=False)
IMAGE = Interface("image", (Image, CompressedImage), depth=1, reliable=False)

COMMAND = Interface("command", tuple(COMMAND_TYPES.values()), lease_s=0.5)
GRIPPER_COMMAND = Interface("gripper_command", (Float64,))
GATE = Interface("~/gate", (GateStatus,))
STATUS = Interface("~/status", (PolicyStatus,))
SETTINGS = Interface("~/settings", (String,), depth=1, latched=True)
OVERLAY = Interface("~/overlay/compressed", (CompressedImage,), depth=1, reliable=False)
DIAGNOSTICS = Interface("/diagnostics", (DiagnosticArray,))

# Between the policy and the guard, where there is one: what the policy's names are remapped to, and the heartbeat.
UNGUARDED = "_unguarded"
GUARD_STATUS = Interface("guard/status", (DiagnosticStatus,), depth=1)

# Of the simulated robot: what it knows of its episodes, for whoever counts them, however late.
EPISODE = Interface("episode", (EpisodeStatus,), depth=100, latched=True)

# Read once, while the node is configured, where limits.robot_description asks for it.
ROBOT_DESCRIPTION = Interface("robot_description", (String,), depth=1, latched=True)

RESET = "~/reset"  # the service, a std_srvs/Trigger

INPUTS = (EMERGENCY_STOP, INSTRUCTION, JOINT_STATES, END_EFFECTOR_POSE, IMAGE)
OUTPUTS = (COMMAND, GRIPPER_COMMAND, GATE, STATUS, SETTINGS, OVERLAY, DIAGNOSTICS)


def image_topics(camera: CameraSettings) -> dict[str, Interface]:
    """Return each camera's name and the topic that its images come on; one camera called image without names."""
    topics = {}
    for name in camera.names or ("",):
        topic = f"{name}/{IMAGE.name}" if name else IMAGE.name
        topics[name or IMAGE.name] = dataclasses.replace(
            IMAGE,
            name=f"{topic}/compressed" if camera.compressed else topic,
            types=(CompressedImage,) if camera.compressed else (Image,),
            reliable=camera.reliable,
        )
    return topics
