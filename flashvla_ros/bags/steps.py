"""What a recording says that the node did: its settings, and every control step with the observation it answered."""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashvla_ros.bags.reader import Bag
from flashvla_ros.bags.topics import Topics
from flashvla_ros.control.step_result import REPORTED
from flashvla_ros.core.errors import BagError, SettingsError
from flashvla_ros.core.provenance import Provenance, settings_digest
from flashvla_ros.core.reasons import EMPTYING, Reason
from flashvla_ros.core.types import FloatArray

ANSWER_NS = 10 * 10**9  # a step is recorded within this time of its image; a looped bag repeats stamps later than that


@dataclasses.dataclass(frozen=True, eq=False)
class RecordedStep:
    """One GateStatus.

    Attributes:
        time_ns: When it was recorded.
        stamp_ns: Stamp of the image that the step answered.
        step: Number of the step since the node was activated.
        resets: Number of resets before it.
        instruction: Instruction in force.
        digest: Names the settings in force.
        values: What a replay must reproduce, by the message's field names.
    """

    time_ns: int
    stamp_ns: int
    step: int
    resets: int
    instruction: str
    digest: str
    values: Mapping[str, Any]

    def restarted(self, before: RecordedStep) -> bool:
        """Whether the node was activated again since the step `before`: it then counts steps and resets from zero."""
        return self.step <= before.step or self.resets < before.resets

    def reset_since(self, before: RecordedStep | None) -> Reason | None:
        """Return what emptied the memory since the step `before`, None where nothing did."""
        named = Reason(self.values["reason"]) if self.values["reason"] in EMPTYING else None
        if before is None or self.restarted(before):
            return named or Reason.START
        return (named or Reason.RESET) if self.resets > before.resets else None

    def rows(self, field: str, size: int) -> FloatArray:
        """Return the chunk [T, D] that a field of `values` holds.

        Raises:
            BagError: It holds no rows of `size` numbers.
        """
        numbers = np.asarray(self.values[field], dtype=np.float64)
        if not len(numbers) or len(numbers) % size:
            raise BagError(f"step {self.step} has {len(numbers)} numbers, not rows of {size} (action.names)")
        return numbers.reshape(-1, size)


@dataclasses.dataclass(frozen=True, eq=False)
class RunLog:
    """Everything recorded of the node's own doing; empty for a recording of cameras alone.

    Attributes:
        steps: In the order in which they were recorded.
        records: Settings, weights and platform by the settings' digest.
        first: The first of them.
        warnings: Sentences about what could not be read.
    """

    steps: Sequence[RecordedStep] = ()
    records: Mapping[str, Provenance] = dataclasses.field(default_factory=dict)
    first: Provenance | None = None
    warnings: tuple[str, ...] = ()


def read_log(bag: Bag, topics: Topics) -> RunLog:
    """Read the node's settings and steps; the images are left alone."""
    steps: list[RecordedStep] = []
    records: dict[str, Provenance] = {}
    warnings: list[str] = []
    for message in bag.messages(topic for topic in (topics.gate, topics.settings) if topic):
        content = bag.decode(message)
        if message.topic == topics.gate:
            steps.append(_step(message.time_ns, content))
            continue
        try:
            record = Provenance.from_json(content.data)
        except SettingsError as error:
            warnings.append(f"{message.topic} at {message.time_ns / 1e9:.3f} s is of no use: {error}")
        else:
            records.setdefault(_digest(content.data, record), record)
    return RunLog(steps, records, next(iter(records.values()), None), tuple(warnings))


def _digest(line: str, record: Provenance) -> str:
    """The name that the recorded steps use; a version with more parameters would compute another one."""
    return str(json.loads(line).get("settings_digest") or settings_digest(record.settings))


def _step(time_ns: int, status: Any) -> RecordedStep:
    stamp = status.header.stamp
    return RecordedStep(
        time_ns=time_ns,
        stamp_ns=stamp.sec * 10**9 + stamp.nanosec,
        step=status.step,
        resets=status.epoch,
        instruction=status.instruction,
        digest=status.settings_digest,
        values={name: getattr(status, name) for name in REPORTED if hasattr(status, name)},  # older bags lack the last
    )


class StepFinder:
    """Pairs images with the steps that answered them, in one pass over both.

    Attributes:
        missing: Steps whose image was passed over or never came.
    """

    def __init__(self, steps: Sequence[RecordedStep]) -> None:
        self._steps = steps
        self._next = 0
        self._by_stamp: dict[int, list[int]] = {}
        self.missing: list[RecordedStep] = []
        for index, step in enumerate(steps):
            self._by_stamp.setdefault(step.stamp_ns, []).append(index)

    def find(self, stamp_ns: int, time_ns: int) -> RecordedStep | None:
        """Return the step that answered the image with this stamp, recorded at `time_ns`; None where none did."""
        index = self._index(stamp_ns)
        step = self._steps[index] if index < len(self._steps) else None
        return step if step and abs(step.time_ns - time_ns) <= ANSWER_NS else None

    def take(self, step: RecordedStep) -> None:
        """Have a step that was found behind us; those before it are missing."""
        index = self._index(step.stamp_ns)
        self.missing.extend(self._steps[self._next : index])
        self._next = index + 1

    def _index(self, stamp_ns: int) -> int:
        indices = self._by_stamp.get(stamp_ns, [])
        position = bisect.bisect_left(indices, self._next)
        return indices[position] if position < len(indices) else len(self._steps)

    def finish(self) -> None:
        """Count the steps that are left as missing."""
        self.missing.extend(self._steps[self._next :])
        self._next = len(self._steps)


def equal(recorded: Any, replayed: Any) -> bool:
    """Compare two values of a step bit for bit; NaN equals NaN."""
    if isinstance(recorded, str):
        return bool(recorded == replayed)
    return bool(np.array_equal(recorded, replayed, equal_nan=True))
