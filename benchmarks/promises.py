"""What a policy node promised, held against what was heard of it: rules over two records, without ROS.

One record has the commands, the other one what was done to the node. All times are of the system's clock. A command's
time is when the node's process wrote it, so a reader that is late itself accuses nobody.
"""

from __future__ import annotations

import bisect
import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

_ROUNDING = 1e-6


class Deed(enum.StrEnum):
    """What was done to the node. The first three ask for silence, the three below them end it."""

    PRESSED = "emergency stop pressed"  # while no reset was under way, which might release it
    DRY = "dry run answered"
    ASLEEP = "deactivate answered"
    RESET = "reset asked for"
    WET = "dry run off asked for"
    AWAKE = "activate asked for"

    INSTRUCTED = "instruction"
    FROZEN = "SIGSTOP"
    THAWED = "SIGCONT"
    OTHER = "other"


_ENDS = {Deed.RESET: Deed.PRESSED, Deed.WET: Deed.DRY, Deed.AWAKE: Deed.ASLEEP}


class Done(NamedTuple):
    """One deed; `text` is the instruction, or what else there is to say."""

    time_s: float
    deed: Deed
    text: str = ""


class Heard(NamedTuple):
    """One command. What its step said of itself is missing of a stop action, which no step made."""

    time_s: float
    stamp_s: float
    velocity: tuple[float, ...]
    instruction: str = ""
    scale: float = math.nan  # control.speed_scale in force

    @property
    def moves(self) -> bool:
        """Whether the robot is to move."""
        return any(self.velocity)


@dataclasses.dataclass(frozen=True)
class Promise:
    """What every command must keep.

    Attributes:
        speed: Greatest velocity of a dimension [m/s].
        step: Greatest change of one between two commands [m/s].
        image_age_s: Oldest image that may be answered, by its stamp.
        held_s: Longest time that a command that moves may stay in force.
        stop_s: Time in which a stop is heard.
        instruction_s: Time in which an instruction is heard.
        write_s: From the last look at an image's age to the end of writing its command.
    """

    speed: float
    step: float
    image_age_s: float
    held_s: float
    stop_s: float = 0.05
    instruction_s: float = 0.5
    write_s: float = 0.05


class Violation(NamedTuple):
    """A promise that was not kept: which, when, how, and what went before it."""

    rule: str
    time_s: float
    text: str
    context: tuple[str, ...]


class Lateness:
    """How late a thread of 10 ms sleeps was, and when the node's process was stopped: time that nobody could use.

    Args:
        samples: (time, lateness) in order.
        done: Everything that was done, in order.
    """

    def __init__(self, samples: Sequence[tuple[float, float]], done: Sequence[Done]) -> None:
        self._times_s = [time_s for time_s, _ in samples]
        self._late_s = [late_s for _, late_s in samples]
        self._frozen: list[tuple[float, float]] = []
        for one in done:
            if one.deed is Deed.FROZEN:
                self._frozen.append((one.time_s, math.inf))
            elif one.deed is Deed.THAWED and self._frozen:
                self._frozen[-1] = self._frozen[-1][0], one.time_s

    def usable_s(self, since_s: float, until_s: float) -> float:
        """Return how much of a span the node's process could use, at the least."""
        frozen_s = sum(max(0.0, min(until_s, end_s) - max(since_s, start_s)) for start_s, end_s in self._frozen)
        return until_s - since_s - frozen_s - self.worst_s(since_s, until_s)

    def excuse(self, time_s: float) -> str:
        """Say what is known of a message that was sent while the process was stopped; empty of any other."""
        if not any(start_s <= time_s <= end_s for start_s, end_s in self._frozen):
            return ""
        return "; sent during SIGSTOP, and Fast DDS sends again what it could not deliver within 3 s, its heartbeat"

    def worst_s(self, since_s: float, until_s: float) -> float:
        """Return the greatest lateness around a span."""
        first = bisect.bisect_left(self._times_s, since_s - 0.1)
        last = bisect.bisect_right(self._times_s, until_s + 0.1)
        return max(self._late_s[first:last], default=0.0)


class _Judge:
    """Walks both records once, in the order of time."""

    def __init__(self, promise: Promise, lateness: Lateness) -> None:
        self._promise, self._lateness = promise, lateness
        self._silences: dict[Deed, tuple[float, bool]] = {}  # since when, and whether the stop was seen since
        self._instructions: list[tuple[float, str]] = []
        self._answered = 0  # index of the newest instruction that a command answered
        self._before = Heard(0.0, 0.0, ())
        self._lines: list[str] = []
        self.violations: list[Violation] = []

    def note(self, done: Done) -> None:
        self._lines.append(f"{done.time_s:.3f} {done.deed} {done.text}".rstrip())
        if done.deed in _ENDS.values():
            self._silences.setdefault(done.deed, (done.time_s, False))
        elif done.deed in _ENDS:
            self._silences.pop(_ENDS[done.deed], None)
        elif done.deed is Deed.INSTRUCTED and (not self._instructions or done.text != self._instructions[-1][1]):
            self._instructions.append((done.time_s, done.text))

    def hear(self, command: Heard) -> None:
        values = " ".join(f"{value:+.4f}" for value in command.velocity)
        what = f"scale {command.scale:g}, {command.instruction!r}" if command.instruction else "no step"
        self._lines.append(f"{command.time_s:.3f} command {values}, stamp {command.stamp_s:.3f}, {what}")
        self._check_size(command)
        self.check_held(command.time_s)
        if command.moves:
            self._check_silence(command)
            self._check_instruction(command)
            age_s = command.time_s - command.stamp_s
            if not command.instruction:
                self._blame("stop", command, "no step made it, and it is no stop action")
            elif age_s > self._promise.image_age_s + self._promise.write_s:
                self._blame("image", command, f"its image is {age_s:.3f} s old")
        elif not command.instruction:
            self._silences = {deed: (since_s, True) for deed, (since_s, _) in self._silences.items()}
        self._before = command

    def check_held(self, now_s: float) -> None:
        held_s = self._lateness.usable_s(self._before.time_s, now_s)
        if self._before.moves and held_s > self._promise.held_s:
            self._blame("held", self._before, f"it stayed in force for {held_s:.3f} s that the process could use")

    def _check_size(self, command: Heard) -> None:
        if any(not abs(value) <= self._promise.speed + _ROUNDING for value in command.velocity):
            self._blame("limits", command, f"{command.velocity} exceeds {self._promise.speed:g}")
        before = self._before
        if not before.velocity or not command.instruction:
            return  # a stop may be as hard as it likes
        ratio = command.scale / before.scale if command.scale < before.scale else 1.0  # a lower one holds at once
        change = max(abs(new - ratio * old) for new, old in zip(command.velocity, before.velocity, strict=True))
        if not change <= self._promise.step + _ROUNDING:
            self._blame("step", command, f"a change of {change:.4f}, allowed {self._promise.step:g}")

    def _check_silence(self, command: Heard) -> None:
        for deed, (since_s, stopped) in self._silences.items():
            after_s = self._lateness.usable_s(since_s, command.time_s)
            if stopped or after_s > self._promise.stop_s:
                stop = f"{'after' if stopped else 'without'} a stop action{self._lateness.excuse(since_s)}"
                self._blame(deed, command, f"{after_s:.3f} s later, {stop}")

    def _check_instruction(self, command: Heard) -> None:
        texts = [text for _, text in self._instructions]
        if not command.instruction:
            return
        if command.instruction not in texts:
            self._blame("instruction", command, f"nobody gave {command.instruction!r}")
            return
        index = texts.index(command.instruction)
        if index < self._answered:
            self._blame("instruction", command, f"after {texts[self._answered]!r} had been answered")
        self._answered = max(self._answered, index)
        if index + 1 < len(texts):
            given_s = self._instructions[index + 1][0]
            late_s = self._lateness.usable_s(given_s, command.time_s)
            if late_s > self._promise.instruction_s:
                excuse = self._lateness.excuse(given_s)
                self._blame("instruction", command, f"it was replaced {late_s:.3f} s before{excuse}")

    def _blame(self, rule: str, command: Heard, text: str) -> None:
        worst_s = self._lateness.worst_s(command.time_s - 0.5, command.time_s)
        context = (*self._lines[-12:], f"lateness of the monitor in the last 0.5 s: {1e3 * worst_s:.0f} ms")
        self.violations.append(Violation(str(rule), command.time_s, text, context))


def judge(
    commands: Sequence[Heard], done: Sequence[Done], promise: Promise, samples: Sequence[tuple[float, float]] = ()
) -> list[Violation]:
    """Return every promise that was not kept, in the order of time.

    Args:
        commands: What the node commanded, in order.
        done: What was done to it, in order; commands after the last deed do not count, since what was sent to the node
            may have been lost with its sender.
        promise: What every command must keep.
        samples: (time, lateness) of the monitor itself.
    """
    judge_ = _Judge(promise, Lateness(samples, done))
    end_s = max((one.time_s for one in done), default=math.inf)
    counted = [command for command in commands if command.time_s <= end_s]
    for event in sorted([*counted, *done], key=lambda event: event.time_s):
        if isinstance(event, Heard):
            judge_.hear(event)
        else:
            judge_.note(event)
    if done:
        judge_.check_held(end_s)
    return judge_.violations


def stop_latencies_s(commands: Sequence[Heard], done: Sequence[Done]) -> list[float]:
    """Return the time from each press that met a moving robot to its stop action."""
    latencies_s, times_s = [], [command.time_s for command in commands]
    for one in done:
        index = bisect.bisect_right(times_s, one.time_s)
        if one.deed is Deed.PRESSED and 0 < index < len(commands) and commands[index - 1].moves:
            following = next((command for command in commands[index:] if not command.moves), None)
            if following is not None:
                latencies_s.append(following.time_s - one.time_s)
    return latencies_s
