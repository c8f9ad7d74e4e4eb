"""Bad messages: every one is counted, each kind of fault is logged once in a while."""

from __future__ import annotations

import collections
import re
import time
from collections.abc import Callable

_VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(\.\d+)?")
_KINDS_REMEMBERED = 64


class Rejections:
    """Counts rejected messages, and tells of the first of a kind in every `every_s` seconds.

    Two faults are of one kind where their texts differ in numbers and quoted values alone, so that a camera that
    sends another wrong size each time cannot flood the log.

    Args:
        log: Gets one line of text. Not a method of rclpy's logger itself: rclpy ties a severity to the line of code
            that calls it, which would be one in here for warnings and errors alike, and raises at the second severity.
        every_s: Time before a kind is logged again.
        clock: Monotonic seconds.
    """

    def __init__(
        self, log: Callable[[str], object], *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._every_s = every_s
        self._clock = clock
        self._logged_s: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._silent: collections.Counter[str] = collections.Counter()
        self.count = 0

    def add(self, text: str) -> None:
        """Count one rejection; `text` names the culprit and the fault."""
        self.count += 1
        kind, now_s = _VALUES.sub("#", text), self._clock()
        if now_s - self._logged_s.get(kind, -float("inf")) < self._every_s:
            self._silent[kind] += 1
            return
        repeated = self._silent.pop(kind, 0)
        self._logged_s[kind] = now_s
        self._logged_s.move_to_end(kind)
        if len(self._logged_s) > _KINDS_REMEMBERED:
            forgotten, _ = self._logged_s.popitem(last=False)
            self._silent.pop(forgotten, None)
        self._log(f"{text} ({repeated} more like it since)" if repeated else text)
