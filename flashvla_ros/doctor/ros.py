"""ROS 2 on this machine: distribution, middleware, the package's messages, and who is at the node's two ends.

One end is the camera that the node would read, the other the controller that would read its commands.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flashvla_ros.cli.parameter_files import DEFAULT_NODE
from flashvla_ros.core.errors import ObservationError, SettingsError
from flashvla_ros.core.extras import remedy
from flashvla_ros.core.settings import CameraSettings, Settings
from flashvla_ros.doctor.finding import Finding, Level, ok
from flashvla_ros.doctor.trial import attempt

_INSTALL = remedy("ros")
_RMW_TRIAL = "import rclpy; print(rclpy.get_rmw_implementation_identifier())"
_FRAMES = 10  # that are enough to tell the rate
_OLDEST = ("jazzy", "kilted", "lyrical", "rolling")


def check_ros(
    settings: Settings, wait_s: float, remappings: Sequence[str] = (), name: str = DEFAULT_NODE
) -> Iterator[Finding]:
    """Look at the installation and, where it works, at cameras and controller; each is awaited for `wait_s`.

    Args:
        settings: Those that the node would have.
        wait_s: Longest wait for somebody at the other end of a topic, and for images.
        remappings: Topics under other names, such as ``image:=/camera/image_raw``.
        name: Of the node, behind its namespace.

    Raises:
        SettingsError: ROS does not take a remapping.
    """
    if importlib.util.find_spec("rclpy") is None:
        yield Finding("ROS 2", Level.FAILURE, "rclpy is not installed", _INSTALL)
        return
    middleware = _middleware()
    yield middleware
    if middleware.level is Level.FAILURE:
        return
    yield _distribution()
    messages = _messages()
    yield messages
    if messages.level is Level.OK:
        yield from _ends(settings, wait_s, remappings, name.rpartition("/")[0])


def _middleware() -> Finding:
    """Name the RMW. One that is asked for and not there ends the process that imports rclpy, so try in another."""
    works, text = attempt(_RMW_TRIAL)
    if works:
        return ok("RMW", f"{text}, {_scope()}")
    asked = os.environ.get("RMW_IMPLEMENTATION")
    if asked is None:
        return Finding("RMW", Level.FAILURE, f"rclpy cannot be imported: {text}", _INSTALL)
    remedy = f"install {asked}, or unset RMW_IMPLEMENTATION"
    return Finding("RMW", Level.FAILURE, f"RMW_IMPLEMENTATION={asked} cannot be used: {text}", remedy)


def _distribution() -> Finding:
    name = os.environ.get("ROS_DISTRO")
    if name is None:
        try:
            return ok("ROS 2", f"wheels: rclpy {importlib.metadata.version('ros-rclpy')}")
        except importlib.metadata.PackageNotFoundError:
            return Finding("ROS 2", Level.WARNING, "rclpy is there, but ROS_DISTRO is not set", _INSTALL)
    if name not in _OLDEST:
        return Finding("ROS 2", Level.WARNING, name, f"the package is tested with {', '.join(_OLDEST[:2])} and newer")
    return ok("ROS 2", name)


def _scope() -> str:
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET").upper()
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    return f"domain {domain}, {'this machine only' if reach == 'LOCALHOST' else f'discovery range {reach}'}"


def _messages() -> Finding:
    try:
        import cv_bridge  # noqa: F401

        from flashvla_ros.msg import GateStatus

        GateStatus()
    except Exception as error:  # noqa: BLE001  # a half-built type support raises what it likes
        remedy = "make setup, or colcon build and source install/setup.bash, builds them"
        return Finding("messages", Level.FAILURE, f"this package's messages do not load: {error}", remedy)
    return ok("messages", "this package's messages and cv_bridge load")


def _ends(settings: Settings, wait_s: float, remappings: Sequence[str], space: str) -> Iterator[Finding]:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    rclpy.init(context=context, args=[], signal_handler_options=SignalHandlerOptions.NO)
    rules = [word for rule in remappings for word in ("-r", rule)]
    try:
        node = rclpy.create_node("flashvla_doctor", context=context, namespace=space, cli_args=["--ros-args", *rules])
    except RuntimeError as error:  # of a type that is not public
        context.try_shutdown()
        raise SettingsError(f"--remap {' '.join(remappings)} is refused: {' '.join(str(error).split())}") from error
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        for topic in image_topics(settings.camera):
            yield _camera(node, executor, topic, settings.camera, wait_s)
        yield _controller(node, executor, settings.command.type, wait_s)
    finally:
        executor.shutdown()
        node.destroy_node()
        context.try_shutdown()


def image_topics(camera: CameraSettings) -> list[str]:
    """Return the topics that the policy node reads images from."""
    topics = [f"{name}/image" for name in camera.names] or ["image"]
    return [f"{topic}/compressed" for topic in topics] if camera.compressed else topics


def _camera(node: Any, executor: Any, name: str, camera: CameraSettings, wait_s: float) -> Finding:
    """Find who publishes a camera's topic, whether the node could connect, and what arrives."""
    from rclpy.qos import QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
    from sensor_msgs.msg import CompressedImage, Image

    arrived: list[Any] = []
    kind = CompressedImage if camera.compressed else Image
    reliability = ReliabilityPolicy.RELIABLE if camera.reliable else ReliabilityPolicy.BEST_EFFORT
    qos = QoSProfile(depth=1, reliability=reliability)
    topic = node.create_subscription(kind, name, arrived.append, qos).topic_name
    publishers = _await(executor, lambda: node.get_publishers_info_by_topic(topic), wait_s)
    if not publishers:
        remedy = f"start the camera, or remap {name}; ros2 topic list shows what there is"
        return Finding("camera", Level.WARNING, f"nobody publishes {topic} within {wait_s:g} s", remedy)
    wanted = f"sensor_msgs/msg/{kind.__name__}"
    if others := sorted({info.topic_type for info in publishers} - {wanted}):
        remedy = f"remap {name} to a topic of {wanted}"
        if others == ["sensor_msgs/msg/CompressedImage"]:
            remedy = f"set camera.compressed to true, and remap {name}/compressed to it"
        return Finding("camera", Level.FAILURE, f"{topic} is {', '.join(others)}, the node reads {wanted}", remedy)
    for info in publishers:
        verdict, reason = qos_check_compatible(info.qos_profile, qos)
        if verdict == QoSCompatibility.ERROR:
            remedy = "set camera.reliable to false, so that the node takes what any publisher sends"
            return Finding("camera", Level.FAILURE, f"QoS of {topic} does not fit: {reason.rstrip('; ')}", remedy)
    kinds = "/".join(sorted({info.qos_profile.reliability.name.lower() for info in publishers}))
    return _frames(executor, arrived, f"{topic}, {kinds}", wait_s)


def _controller(node: Any, executor: Any, command_type: str, wait_s: float) -> Finding:
    """Find who reads the commands, and whether it could; ROS connects topics of different types without a word."""
    from rclpy.duration import Duration, Infinite
    from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

    from flashvla_ros.messages.commands import COMMAND_TYPES

    # Written out: what the graph reports of a reader has infinite times, and the check takes 0 for something else.
    offered = QoSProfile(depth=10, deadline=Infinite, liveliness_lease_duration=Duration(seconds=0.5))
    topic = node.resolve_topic_name("command")
    wanted = f"{COMMAND_TYPES[command_type].__module__.partition('.')[0]}/msg/{command_type}"
    readers = _await(executor, lambda: node.get_subscriptions_info_by_topic(topic), wait_s)
    if not readers:
        remedy = "start the controller, and remap command to its topic; docs/safety.md has several"
        return Finding("controller", Level.WARNING, f"nobody reads {topic} within {wait_s:g} s", remedy)
    if others := sorted({info.topic_type for info in readers} - {wanted}):
        remedy = "set command.type to what the controller reads, or remap command to another of its topics"
        text = f"{topic} is read as {', '.join(others)}, the node sends {wanted}"
        return Finding("controller", Level.FAILURE, text, remedy)
    for info in readers:
        verdict, reason = qos_check_compatible(offered, info.qos_profile)
        if verdict == QoSCompatibility.ERROR:
            remedy = "the node sends reliable and volatile: let the controller ask for no more than that"
            return Finding("controller", Level.FAILURE, f"QoS of {topic} does not fit: {reason.rstrip('; ')}", remedy)
    names = ", ".join(sorted(info.node_name for info in readers))
    return ok("controller", f"{topic} is read as {wanted} by {names}")


def _await(executor: Any, look: Callable[[], list[Any]], wait_s: float) -> list[Any]:
    end_s = time.monotonic() + wait_s
    while not (found := look()) and time.monotonic() < end_s:
        executor.spin_once(timeout_sec=0.1)
    return found


def _frames(executor: Any, arrived: list[Any], what: str, wait_s: float) -> Finding:
    """Take a few images, within the time that is left to wait."""
    times_s = [time.monotonic()]
    while len(arrived) < _FRAMES and time.monotonic() < times_s[0] + wait_s:
        before = len(arrived)
        executor.spin_once(timeout_sec=0.1)
        if len(arrived) > before:
            times_s.append(time.monotonic())
    if not arrived:
        remedy = "look at the camera driver, and whether large messages pass the network (raw images want gigabits)"
        return Finding("camera", Level.FAILURE, f"{what}: no image within {wait_s:g} s", remedy)
    last = arrived[-1]
    size = f"{last.width}x{last.height} {last.encoding}" if hasattr(last, "encoding") else last.format
    rate = f", {(len(times_s) - 2) / (times_s[-1] - times_s[1]):.0f} Hz" if len(times_s) > 2 else ""
    from flashvla_ros.messages.images import decode_compressed, decode_image

    try:
        decode_image(last) if hasattr(last, "encoding") else decode_compressed(last)
    except ObservationError as error:
        return Finding("camera", Level.FAILURE, f"{what}: the node could not use its images: {error}")
    return ok("camera", f"{what}: {size}{rate}")
