"""What :mod:`benchmarks.abuse` does to a policy node: twelve kinds of abuse, from a seed, and a record of them."""

from __future__ import annotations

import collections
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lifecycle_msgs.msg import State as LifecycleState
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.parameter import Parameter as RosParameter
from rclpy.parameter_client import AsyncParameterClient
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from benchmarks.own_node import OwnNode, picture
from benchmarks.promises import Deed, Done
from benchmarks.soak import Changes
from flashvla_ros.bringup.children import Child
from flashvla_ros.bringup.processes import POLICY
from flashvla_ros.nodes import interfaces

FLOODED = "in a flood of raw 4K images"  # said of a press
KINDS = {  # of abuse, each a method, with how often it is drawn
    "instructions": 3,
    "resets": 3,
    "parameters": 4,
    "press": 4,
    "flap": 1,
    "freeze": 4,
    "pictures": 3,
    "stamps": 3,
    "joints": 1,
    "lifecycle": 1,
    "second_camera": 2,
    "new_camera": 1,
    "flood": 2,
}
_PATIENCE_S = 120.0
_RECOVERY_S = 3.0  # longest wait for the robot to move again
_WRONG: tuple[tuple[str, Any], ...] = (
    ("control.speed_scale", float("nan")),
    ("control.speed_scale", -1.0),
    ("control.rate_hz", "fast"),
    ("limits.lower", [0.0]),
    ("limits.upper", [float("inf")] * 4),
    ("gate.mode", "none of them"),
    ("model.device", "cuda:7"),
    ("nobody.knows", 1),
)


class Abuser(OwnNode):
    """Does to the node what nobody should, from a seed, and keeps a record of it.

    Attributes:
        done: The record.
        faults: Wrong answers of the node, in words.
        counts: How often each kind of abuse was done.
        camera: The camera's process of the moment.

    Args:
        seed: Of what is drawn.
        policy: The node's process.
        camera: Starts a camera, or a flood of raw 4K images.
        moves: Returns how many commands have moved the robot.
        only: Names of the kinds to do; empty: all.
    """

    def __init__(
        self,
        seed: int,
        policy: Child,
        camera: Callable[[str], Child],
        moves: Callable[[], int],
        only: Sequence[str] = (),
    ) -> None:
        super().__init__("abuser")
        self._random = random.Random(seed)  # noqa: S311  # not a secret
        self._noise = np.random.default_rng(seed)
        self._changes = Changes(seed)
        self._policy, self._moves = policy, moves
        self._make_camera, self.camera = camera, camera("camera")
        self.done: list[Done] = []
        self.faults: list[str] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._releasing: dict[Deed, set[Any]] = collections.defaultdict(set)  # answers not here yet
        self._instruction, self._number = "", 0
        self._instructions = self.create_publisher(String, interfaces.INSTRUCTION.name, interfaces.INSTRUCTION.qos)
        self._button = self.create_publisher(Bool, interfaces.EMERGENCY_STOP.name, 1000)
        self._joints = self.create_publisher(JointState, interfaces.JOINT_STATES.name, 10)
        self._images = self.create_publisher(Image, interfaces.IMAGE.name, 10)
        self._reset = self.create_client(Trigger, f"{POLICY}/reset")
        self._parameters = AsyncParameterClient(self, POLICY)
        self._lifecycle = [self.create_client(ChangeState, f"{POLICY}/change_state") for _ in range(2)]
        self._state = self.create_client(GetState, f"{POLICY}/get_state")
        self._giving = threading.Lock()  # a repetition must not follow what replaced it
        self.create_timer(1.0, self._repeat_instruction)
        self._kinds = tuple(only or KINDS)

    def run(self, duration_s: float) -> None:
        """Abuse the node for that long; every other time it may recover from what was done.

        Raises:
            ProcessLookupError: The node's process has ended.
        """
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            [abuse] = self._random.choices(self._kinds, weights=[KINDS[kind] for kind in self._kinds])
            self.counts[abuse] += 1
            self._note(Deed.OTHER, abuse)
            getattr(self, abuse)()
            self._pause(0.0, 0.3)
            if self._random.random() < 0.7:
                self.recover()
            if self._policy.code is not None:
                raise ProcessLookupError
        self._note(Deed.OTHER, "the end")

    def recover(self) -> None:
        """Let the robot move for a moment."""
        self._call_reset()
        self._set("control.dry_run", False, True)
        self._set("control.speed_scale", 1.0, True)
        before, end_s = self._moves(), time.monotonic() + _RECOVERY_S
        while self._moves() < before + 2 and time.monotonic() < end_s:
            time.sleep(0.02)
        self._pause(0.0, 0.5)

    def instruct(self) -> None:
        """Give an instruction that nobody gave before."""
        with self._giving:
            self._number += 1
            self._instruction = f"close the drawer, {self._number}"
            self._note(Deed.INSTRUCTED, self._instruction)
            self._instructions.publish(String(data=self._instruction))

    def instructions(self) -> None:
        """One, or a flood."""
        self._repeat(self.instruct, self._random.choice((1, 5, 60, 200)))

    def resets(self) -> None:
        """One, or a flood."""
        self._repeat(self._call_reset, self._random.choice((1, 5, 100)))

    def parameters(self) -> None:
        """Valid and invalid ones."""
        for _ in range(self._random.choice((1, 3, 30))):
            draw = self._random.random()
            if draw < 0.3:
                self._set(*self._random.choice(_WRONG), False)
            elif draw < 0.5:
                self._set("control.speed_scale", round(self._random.random(), 3), True)
            elif draw < 0.6:
                self._set("control.dry_run", self._random.random() < 0.5, True)
            elif draw < 0.7:
                self._set("control.ramp_s", self._random.choice((0.0, 0.0, 1.0)), True)
            elif draw < 0.8:
                self._set("control.rate_hz", self._random.choice((0.0, 10.0, 30.0)), True)
            else:
                name, value, accepted = self._changes.draw()
                if not name.startswith("control."):
                    self._set(name, value, accepted)

    def press(self) -> None:
        """The emergency stop, while a reset may be under way or not."""
        self._press(True)
        self._pause(0.1, 1.0)

    def flap(self) -> None:
        """A button that bounces at 100 Hz."""
        for _ in range(100):
            self._press(True)
            time.sleep(0.005)
            self._press(False)
            time.sleep(0.005)

    def freeze(self) -> None:
        """SIGSTOP; other things happen meanwhile."""
        self._note(Deed.FROZEN)
        os.kill(self._policy.pid, signal.SIGSTOP)
        try:
            self._pause(0.1, 1.5)
            meanwhile = self._random.choice((self.instruct, lambda: self._press(True), lambda: None))
            meanwhile()
            self._pause(0.0, 1.5)
        finally:
            os.kill(self._policy.pid, signal.SIGCONT)
            self._note(Deed.THAWED)
        self._pause(0.2, 1.0)

    def pictures(self) -> None:
        """Damaged and huge ones."""
        kind = self._random.randrange(6)
        image = picture(self._noise, *((3000, 4000) if kind == 0 else (96, 128)))
        if kind == 1:
            image.width = image.height = 30000
        elif kind == 2:
            image.step = 7
        elif kind == 3:
            image.encoding = "x" * 100_000
        elif kind == 4:
            image.data = image.data[:100]
        elif kind == 5:
            image = Image()
        self._repeat(lambda: self._images.publish(image), self._random.choice((1, 3, 10)))

    def stamps(self) -> None:
        """From the past and the future."""
        for _ in range(self._random.choice((1, 5, 20))):
            shift_s = self._random.choice((-1e9, -3600.0, -10.0, -1.5, -0.9, -0.5, 0.1, 1.0, 100.0, 3e8))
            self._images.publish(picture(self._noise, shift_s=shift_s))
            self._pause(0.0, 0.1)

    def joints(self) -> None:
        """Of ever new names."""
        for _ in range(20):
            self._number += 1
            names = [f"joint_{self._number}_{index}" for index in range(500)]
            self._joints.publish(JointState(name=names, position=[0.0] * len(names)))
            time.sleep(0.02)

    def lifecycle(self) -> None:
        """Transitions asked for by two clients; in the end the node is active again."""
        words = [Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE]
        if self._random.random() < 0.3:
            words += [Transition.TRANSITION_CLEANUP, Transition.TRANSITION_CONFIGURE]
        for _ in range(self._random.randint(2, 6)):
            self._change_state(self._random.choice(words))
            self._pause(0.0, 0.3)
        end_s = time.monotonic() + _PATIENCE_S
        while (state := self._wait(self._state.call_async(GetState.Request())).current_state.id) != (
            LifecycleState.PRIMARY_STATE_ACTIVE
        ):
            if time.monotonic() > end_s:
                self.faults.append("the node does not become active again")
                return
            if state == LifecycleState.PRIMARY_STATE_UNCONFIGURED:
                self._wait(self._change_state(Transition.TRANSITION_CONFIGURE))
            self._wait(self._change_state(Transition.TRANSITION_ACTIVATE))
        self._releasing[Deed.RESET].clear()  # a service that was closed answers nobody

    def second_camera(self) -> None:
        """Another publisher of images, at 50 Hz."""
        for _ in range(self._random.choice((20, 100))):
            self._images.publish(picture(self._noise))
            time.sleep(0.02)

    def new_camera(self) -> None:
        """The camera dies, and comes back."""
        os.kill(self.camera.pid, signal.SIGKILL)
        self.camera.stop()
        self._pause(0.0, 1.0)
        self.camera = self._make_camera("camera")

    def flood(self) -> None:
        """Another camera, of raw 4K images as fast as they go, and a press among them."""
        large = self._make_camera("flood")
        self._pause(3.0, 6.0)
        self._press(True, FLOODED)
        self._pause(0.5, 1.0)
        large.stop()

    def _repeat_instruction(self) -> None:
        with self._giving:
            if self._instruction:
                self._instructions.publish(String(data=self._instruction))

    def _repeat(self, action: Callable[[], object], count: int) -> None:
        period_s = self._random.choice((0.005, 0.01, 0.03))
        for _ in range(count):
            action()
            time.sleep(period_s)

    def _pause(self, low_s: float, high_s: float) -> None:
        time.sleep(self._random.uniform(low_s, high_s))

    def _note(self, deed: Deed, text: str = "") -> None:
        self.done.append(Done(time.time(), deed, text))

    def _press(self, pressed: bool, text: str = "") -> None:
        unsure = any(not future.done() for future in self._releasing[Deed.RESET])
        self._button.publish(Bool(data=pressed))
        if pressed:
            self._note(Deed.OTHER, "pressed beside a reset") if unsure else self._note(Deed.PRESSED, text)

    def _release(self, deed: Deed, ask: Callable[[], Any]) -> Any:
        """Note what ends a silence before it is asked for."""
        self._note(deed)
        future = ask()
        self._releasing[deed] = {one for one in self._releasing[deed] if not one.done()} | {future}
        return future

    def _quieten(self, deed: Deed, ended_by: Deed, future: Any) -> Any:
        """Note that the node has answered it is silent from now on, unless somebody may have ended that already."""
        count = sum(one.deed is ended_by for one in self.done)
        asked = any(not one.done() for one in self._releasing[ended_by])

        def on_answer(answer: Any) -> None:
            result = answer.result()
            worked = result.results[0].successful if hasattr(result, "results") else result.success
            if worked and not asked and count == sum(one.deed is ended_by for one in self.done):
                self._note(deed)

        future.add_done_callback(on_answer)
        return future

    def _call_reset(self) -> None:
        if self._reset.service_is_ready():
            self._release(Deed.RESET, lambda: self._reset.call_async(Trigger.Request()))

    def _set(self, name: str, value: Any, accepted: bool) -> None:
        if not self._parameters.services_are_ready():
            return

        def ask() -> Any:
            return self._parameters.set_parameters([RosParameter(name, value=value)])

        def on_answer(answer: Any) -> None:
            [result] = answer.result().results
            if result.successful is not accepted:
                self.faults.append(f"{name} = {value!r}: {result.reason or 'was accepted'}")

        if name != "control.dry_run":
            future = ask()
        elif value:
            future = self._quieten(Deed.DRY, Deed.WET, ask())
        else:
            future = self._release(Deed.WET, ask)
        future.add_done_callback(on_answer)

    def _change_state(self, number: int) -> Any:
        request = ChangeState.Request(transition=Transition(id=number))
        client = self._random.choice(self._lifecycle)
        if number == Transition.TRANSITION_ACTIVATE:
            return self._release(Deed.AWAKE, lambda: client.call_async(request))
        future = client.call_async(request)
        return self._quieten(Deed.ASLEEP, Deed.AWAKE, future) if number == Transition.TRANSITION_DEACTIVATE else future

    def _wait(self, future: Any) -> Any:
        answered = threading.Event()
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(_PATIENCE_S):
            raise ProcessLookupError
        return future.result()
