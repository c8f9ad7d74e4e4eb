"""The processes of a bringup, described once: for ``ros2 launch`` and for ``flashvla-ros bringup``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.bringup import cameras
from flashvla_ros.bringup.libero import ROBOTS, check_robot, libero_parameters
from flashvla_ros.cli.parameter_files import given_values, overriding, read_parameters
from flashvla_ros.cli.yaml_files import read_yaml
from flashvla_ros.core.certificate import shipped
from flashvla_ros.core.errors import FlashVLAError, SettingsError, unknown_name
from flashvla_ros.core.parameter import Value
from flashvla_ros.core.paths import share_path, user_path
from flashvla_ros.nodes.interfaces import UNGUARDED

POLICY, GUARD, ROBOT = "flashvla", "guard", "robot"
_GUARDED = ("command", "gripper_command")  # topics that go through the guard
_HEARD = ("emergency_stop", "joint_states", "end_effector_pose")  # topics that policy and guard both read
_MEANING = ("action.names", "action.kinds", "action.dt_s", "command.type", "command.frame_id")


@dataclasses.dataclass(frozen=True)
class Process:
    """One node in a process of its own.

    Attributes:
        name: Name of the node: POLICY, GUARD or ROBOT.
        files: Parameter files, in the order in which they are read.
        parameters: Values that go before those of the files.
        remappings: Topics under other names.
        namespace: In which the node and its relative topics are; empty: the root.
        log_level: Least severity that is logged, such as ``warn``; empty: rclpy's own.
    """

    name: str
    files: tuple[Path, ...] = ()
    parameters: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    remappings: tuple[tuple[str, str], ...] = ()
    namespace: str = ""
    log_level: str = ""

    @property
    def executable(self) -> str:
        """Installed program, for ``ros2 run`` and ``ros2 launch``."""
        return f"{'policy' if self.name == POLICY else self.name}_node"

    @property
    def module(self) -> str:
        """The same as a Python module, for machines without them."""
        return "flashvla_ros.guard.node" if self.name == GUARD else f"flashvla_ros.nodes.{self.executable}"

    def own_file(self) -> Path:
        """Write `parameters` as the file to be read last; it lives as long as this process."""
        return overriding(self.parameters, self.files)

    def arguments(self) -> list[str]:
        """Return the command line behind the program's name."""
        words = ["--ros-args", "-r", f"__node:={self.name}"]
        if self.namespace:
            words += ["-r", f"__ns:=/{self.namespace.strip('/')}"]
        if self.log_level:
            words += ["--log-level", self.log_level]
        for path in (*self.files, self.own_file()):
            words += ["--params-file", str(path)]
        for old, new in self.remappings:
            words += ["-r", f"{old}:={new}"]
        return words


@dataclasses.dataclass(frozen=True)
class Bringup:
    """What to bring up; the defaults are the demo.

    Attributes:
        robot: Which one is simulated: demo, or libero.
        task: Its task: a name, or of LIBERO suite/number.
        instruction: What it is told; empty: the task's own words.
        episodes: How many; 0: until stopped.
        seed: Of the first episode's scene.
        lock_step: The robot waits for each command, so that a run repeats exactly.
        camera: Image topic of a real robot, whose driver runs already; several as ``name:=topic``, separated by spaces;
            empty: the simulated one.
        checkpoint: Folder of an OpenVLA checkpoint; empty: the demo policy.
        policy: Address ``ws://HOST:PORT`` of a policy server, in place of a checkpoint.
        params: Parameter file for the policy node; empty: none beside the demo's.
        remap: Topics of the policy node under other names, such as ``command:=/servo_node/delta_twist_cmds``; several
            are separated by spaces.
        guard: A process of its own stands between the policy's commands and the robot. In lock-step there is none: a
            robot that waits for each command needs nobody to stop it.
        guard_params: Parameter file with the guard's limits; empty: the demo's, or for a real robot none but the rules
            that need none.
        namespace: In which all nodes and their topics are.
        use_sim_time: The policy node takes its time from ``/clock``.
        autostart: The policy node configures and activates itself.
        log_level: Least severity that the nodes log.
        overrides: Parameters of the policy node that go before the files.
    """

    robot: str = "demo"
    task: str = "drawer-open"
    instruction: str = ""
    episodes: int = 0
    seed: int = 0
    lock_step: bool = False
    camera: str = ""
    checkpoint: str = ""
    policy: str = ""
    params: str = ""
    remap: str = ""
    guard: bool = True
    guard_params: str = ""
    namespace: str = ""
    use_sim_time: bool = False
    autostart: bool = True
    log_level: str = ""
    overrides: Mapping[str, Value] = dataclasses.field(default_factory=dict)

    def processes(self) -> tuple[Process, ...]:
        """Return the processes, the policy node first, the guard behind it.

        Raises:
            FlashVLAError: A file is missing, or the options do not go together.
        """
        if self.camera and (self.episodes or self.lock_step or self.robot != ROBOTS[0]):
            raise SettingsError("robot, episodes and lock_step belong to the simulated robot, but a camera was given")
        policy = self._policy()
        guard = (self._guard(policy),) if self._guarded else ()
        return (policy, *guard) if self.camera else (policy, *guard, self._robot(policy))

    @classmethod
    def from_text(cls, values: Mapping[str, str]) -> Bringup:
        """Return what launch arguments ask for, whose values are text.

        Raises:
            SettingsError: A value is not of its field's type; names it.
        """
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        return cls(**{name: _value(name, text, kinds[name]) for name, text in values.items()})

    @property
    def _guarded(self) -> bool:
        return self.guard and not self.lock_step

    @property
    def _rules(self) -> tuple[tuple[str, str], ...]:
        return tuple(_remapping(rule, self._full("")) for rule in self.remap.split())

    @property
    def _libero(self) -> bool:
        return not self.camera and check_robot(self.robot, self.task)

    @property
    def _defaults(self) -> Path:
        return share_path("config", "libero.yaml" if self._libero else "demo.yaml")

    def _guard(self, policy: Process) -> Process:
        """The guard reads what the policy's commands mean from the policy's parameters; its limits are its own."""
        given = self._told(policy)
        parameters = {name: given[name] for name in _MEANING if name in given}
        files = (_existing(self.guard_params),) if self.guard_params else ()
        if not self.camera and not files:
            files = (share_path("config", "libero.yaml" if self._libero else "guard.yaml"),)
        own = [given_values(file, self._full(GUARD)) for file in files]
        if "control.stop_action" in given and not any("guard.stop_action" in values for values in own):
            parameters["guard.stop_action"] = given["control.stop_action"]
        times = [given_values(file, self._full(POLICY)).get("use_sim_time") for file in policy.files]
        if self.use_sim_time or True in times:
            parameters["use_sim_time"] = True
        remappings = tuple(rule for rule in self._rules if rule[0] in (*_GUARDED, *_HEARD))
        return Process(GUARD, files, parameters, remappings, self.namespace, self.log_level)

    def _told(self, policy: Process) -> dict[str, Value]:
        """Return all that the policy node is told."""
        return {**self._given(policy.files), **policy.parameters}

    def _given(self, files: Sequence[Path]) -> dict[str, Value]:
        """Return what parameter files say to the policy node."""
        given: dict[str, Value] = {}
        for file in files:
            given.update(read_parameters(file, self._full(POLICY)))
        return given

    def _full(self, name: str) -> str:
        """Return the full name of a node."""
        space = self.namespace.strip("/")
        return f"/{space}/{name}" if space else f"/{name}"

    def _policy(self) -> Process:
        parameters: dict[str, Value] = {"node.autostart": self.autostart, **self.overrides}
        remappings = self._rules
        if self._guarded:
            parameters = {"control.require_guard": True, **parameters}
            remappings = tuple(rule for rule in remappings if rule[0] not in _GUARDED)
            remappings = (*((topic, topic + UNGUARDED) for topic in _GUARDED), *remappings)
        if self.checkpoint:
            parameters["model.checkpoint"] = _folder(self.checkpoint)
        if self.policy:
            parameters["model.remote"] = self.policy
        own = (_existing(self.params),) if self.params else ()
        given = self._given(own) | parameters
        if self._libero and not given.get("model.remote"):
            parameters = {**libero_parameters(self.task, given).policy, **parameters}
        if self.camera:
            named, ending = cameras.parse(self.camera)
            parameters["camera.compressed"] = bool(ending)
            if "" not in named:
                parameters["camera.names"] = tuple(named)
            images = ((f"{name}/image{ending}" if name else f"image{ending}", topic) for name, topic in named.items())
            remappings = (*images, *remappings)
            parameters.update({"node.instruction": self.instruction} if self.instruction else {})
        if self.lock_step or self.use_sim_time:
            parameters["use_sim_time"] = True
        files = own if self.camera else (self._defaults, *own)
        if not given.get("model.remote"):  # what nobody sets is as the checkpoint's certificate has it
            checkpoint = given.get("model.checkpoint")
            certified = shipped(Path(_folder(str(checkpoint))) if checkpoint else share_path("models", "demo"))
            said = self._given(files) if certified else {}
            parameters = {**{name: value for name, value in certified.items() if name not in said}, **parameters}
        return Process(POLICY, files, parameters, remappings, self.namespace, self.log_level)

    def _robot(self, policy: Process) -> Process:
        # The table of tasks needs no simulator, and a misspelt name is better refused before anything starts.
        from flashvla_ros.sim.tasks import check_name

        check_name(self.task)
        parameters: dict[str, Value] = {
            "task": self.task,
            "episodes": self.episodes,
            "seed": self.seed,
            "lock_step": self.lock_step,
        }
        parameters.update({"instruction": self.instruction} if self.instruction else {})
        told = self._told(policy)
        names: Any = told.get("camera.names", ())
        parameters.update(cameras.simulated(names))
        if self._libero and not told.get("model.remote"):
            parameters.update(libero_parameters(self.task, told).robot)
        return Process(ROBOT, (self._defaults,), parameters, (), self.namespace, self.log_level)


def refuse_unknown(words: Sequence[str], file: str, known: Sequence[str]) -> None:
    """Refuse arguments that a launch file does not have; launch itself takes them without a word.

    Args:
        words: The command line.
        file: The launch file. Where another one includes it, the words are that one's, and all are let pass.
        known: Names of its arguments.

    Raises:
        SettingsError: Names one, and what it may have been meant to be.
    """
    if not any(Path(word).name == Path(file).name for word in words):
        return
    for word in words:
        name, given, _ = word.partition(":=")
        if given and not word.startswith("-") and name not in known:
            raise SettingsError(unknown_name("launch argument", name, known))


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    with contextlib.suppress(ValueError):
        if type(value := json.loads(text.lower())) is kind:
            return value
    raise SettingsError(f"{name} must be {'true or false' if kind is bool else 'a whole number'}, got {text!r}")


def _remapping(rule: str, space: str) -> tuple[str, str]:
    """Split a rule; its topic may be written in full, and is relative to the namespace from here on."""
    topic, arrow, name = rule.partition(":=")
    if not (topic and arrow and name) or ":" in topic:
        raise SettingsError(f"a remapping has the form topic:=name, such as command:=/arm/command, got {rule!r}")
    return topic.removeprefix(space), name


def _folder(path: str) -> str:
    found = user_path(path)
    if not found.is_dir():  # the node would say so too, but only once it has loaded its libraries
        raise FlashVLAError(f"checkpoint folder {path} does not exist: give a folder of this machine")
    return str(found)


def _existing(path: str) -> Path:
    found = user_path(path)
    if not found.is_file():
        raise FlashVLAError(f"there is no parameter file {path}")
    read_yaml(found)  # the node would refuse it too, later
    return found
