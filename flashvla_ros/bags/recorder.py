"""Record topics into a bag through rclpy, as serialised bytes: no ROS installation and no rosbag2 needed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import re
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

from flashvla_ros.bags.definitions import Decoder, message_definition
from flashvla_ros.bags.topics import IMAGE_TYPES
from flashvla_ros.core.errors import BagError

if TYPE_CHECKING:
    from flashvla_ros.bags.writer import BagWriter

DISCOVERY_S = 0.1
DEPTH = 100
_UNSAID = re.compile("(?<=.)(/image[^/]*)?(/compressed)?$")  # of an image's topic: it does not tell whose image it is

SHARED_TOPICS = frozenset({"/parameter_events", "/clock", "/diagnostics", "/tf", "/tf_static", "/robot_description"})


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which topics to record.

    Attributes:
        node: Full name of the policy node, whose inputs and outputs are recorded, with what all nodes share.
        names: Topics to record instead.
        every: Record every topic.
        exclude: A topic in whose name this is found is never recorded.
    """

    node: str = "/flashvla"
    names: tuple[str, ...] = ()
    every: bool = False
    exclude: re.Pattern[str] | None = None

    def of(self, graph: Node) -> dict[str, str]:
        """Return name and type of the topics to record, among those that `graph` sees now."""
        types = {name: types[0] for name, types in graph.get_topic_names_and_types()}
        return {
            name: type_name
            for name, type_name in types.items()
            if self._wants(graph, name, type_name) and not (self.exclude and self.exclude.search(name))
        }

    def _wants(self, graph: Node, name: str, type_name: str) -> bool:
        if self.every or self.names:
            return self.every or name in self.names
        return name in SHARED_TOPICS or type_name.startswith("flashvla_ros/") or self._is_of_node(graph, name)

    def _is_of_node(self, graph: Node, topic: str) -> bool:
        """Whether the node has this topic, or a guard passes on in it what the node publishes.

        Asked of the topic: asked by a node's name, the graph tells of one node alone, and a policy node that was
        killed stays in it for 20 s with the one that took its place.
        """
        infos = graph.get_publishers_info_by_topic, graph.get_subscriptions_info_by_topic
        return any(self._own(info(name)) for name in (topic, f"{topic}_unguarded") for info in infos)

    def is_once(self, graph: Node, topic: str) -> bool:
        """Whether the node hears here what may be said once, a press or an instruction: reliable and not latched."""
        once = ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE
        heard = self._own(graph.get_subscriptions_info_by_topic(topic))
        return any((qos.reliability, qos.durability) == once for qos in heard)

    def _own(self, ends: list[Any]) -> list[QoSProfile]:
        itself = {self.node, f"{self.node}_emergency_stop"}
        return [end.qos_profile for end in ends if f"{end.node_namespace.rstrip('/')}/{end.node_name}" in itself]


class LiveTopics:
    """Takes the place of a recorder's bag: every message goes to the view as it comes."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink

    def add_topic(self, name: str, type_name: str, definition: str, *_: Any) -> tuple[str, str, Decoder]:
        """Declare a topic; what a bag would store of it besides is passed over."""
        if type_name in IMAGE_TYPES:
            last = {topic: _UNSAID.sub("", topic).rpartition("/")[2] for topic in sorted({*self._sink.cameras, name})}
            used = [*last.values()]  # twice: the whole topics are the names of both, whichever was found first
            self._sink.cameras = {topic: topic[1:] if used.count(part) > 1 else part for topic, part in last.items()}
        return name, type_name, Decoder({type_name: ("MSG", definition)})

    def check(self) -> None:
        """A view takes everything."""

    def write(self, topic: tuple[str, str, Decoder], time_ns: int, data: bytes) -> None:
        """Show one serialised message; those of types that nobody shows are passed over."""
        name, type_name, decoder = topic
        with contextlib.suppress(BagError):
            self._sink.take(name, type_name, decoder.decode(data, type_name), time_ns)


class BagRecorder(Node):
    """Subscribes to every topic of a selection as soon as someone publishes it, and before to what may be said once."""

    def __init__(self, writer: BagWriter | LiveTopics, selection: Selection, **node: Any) -> None:
        super().__init__("flashvla_recorder", enable_rosout=False, start_parameter_services=False, **node)
        self._writer = writer
        self._selection = selection
        self._topics: dict[str, tuple[Any, Subscription[Any]]] = {}
        self._skipped: set[str] = set()
        self.create_timer(DISCOVERY_S, self._discover)

    def _discover(self) -> None:
        for name, type_name in self._selection.of(self).items():
            if name in self._topics:
                self._follow_publishers(name)
            elif name not in self._skipped:
                self._add(name, type_name)

    def _add(self, name: str, type_name: str) -> None:
        publishers = self._offers(name)
        if not publishers and not self._selection.is_once(self, name):  # what is latched waits
            return
        try:
            message_type, definition = _message_type(type_name), message_definition(type_name)
        except BagError as error:
            self._skipped.add(name)
            self.get_logger().warning(f"{name} is not recorded: {error}")
            return
        declare = functools.cache(
            lambda: self._writer.add_topic(name, type_name, *definition, [*map(_offered, self._offers(name))])
        )
        if publishers:  # otherwise it is declared with its first message: a bag without has no such topic
            declare()
        self._topics[name] = (declare, self._subscribe(name, declare, message_type, _requested(publishers)))

    def _offers(self, name: str) -> list[QoSProfile]:
        return [info.qos_profile for info in self.get_publishers_info_by_topic(name)]

    def _subscribe(self, name: str, declare: Any, message_type: Any, qos: QoSProfile) -> Subscription[Any]:
        def store(data: bytes, info: Any) -> None:
            self._writer.write(declare(), info["received_timestamp"] or time.time_ns(), data)

        return self.create_subscription(message_type, name, store, qos, raw=True)

    def _follow_publishers(self, name: str) -> None:
        """Ask for less where a publisher has come that offers less, and for what is latched where nothing has come."""
        declare, subscription = self._topics[name]
        publishers, asked = self._offers(name), subscription.qos_profile
        needed = _requested(publishers) if publishers else asked
        latched = needed.durability < asked.durability and not declare.cache_info().currsize
        if needed.reliability > asked.reliability or needed.durability > asked.durability or latched:
            self.destroy_subscription(subscription)
            self._topics[name] = (declare, self._subscribe(name, declare, subscription.msg_type, needed))


def record_into(writer: BagWriter | LiveTopics, selection: Selection, duration_s: float = float("inf")) -> None:
    """Hand every message of a selection to a writer, until Ctrl-C, SIGTERM or so many seconds have passed."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    end_s = time.monotonic() + duration_s
    context = rclpy.Context()
    rclpy.init(context=context, args=[], signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor(context=context)
    recorder = BagRecorder(writer, selection, context=context)
    executor.add_node(recorder)
    try:
        while not stop.is_set() and time.monotonic() < end_s:
            executor.spin_once(timeout_sec=0.1)
            writer.check()
    finally:
        executor.shutdown()
        recorder.destroy_node()
        context.try_shutdown()


def _message_type(type_name: str) -> Any:
    package, _, name = type_name.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError) as error:
        raise BagError(f"the package {package} with the type {type_name} is not installed") from error


def _requested(publishers: list[QoSProfile]) -> QoSProfile:
    """The most that every publisher offers, as rosbag2 asks for it; without one, what the node's inputs ask for."""
    reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in publishers)
    latched = {qos.durability for qos in publishers} == {DurabilityPolicy.TRANSIENT_LOCAL}
    return QoSProfile(
        depth=DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def _offered(qos: QoSProfile) -> Qos:
    """A publisher's profile in the form that goes into the bag."""
    times = ("deadline", "lifespan", "liveliness_lease_duration")
    return Qos(
        history=QosHistory[qos.history.name],
        depth=qos.depth,
        reliability=QosReliability[qos.reliability.name],
        durability=QosDurability[qos.durability.name],
        liveliness=QosLiveliness[qos.liveliness.name],
        avoid_ros_namespace_conventions=qos.avoid_ros_namespace_conventions,
        **{name: QosTime(*divmod(getattr(qos, name).nanoseconds, 10**9)) for name in times},
    )
