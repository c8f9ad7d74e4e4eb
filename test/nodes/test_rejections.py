"""Bad messages are all counted and seldom logged."""

from __future__ import annotations

from flashvla_ros.nodes.logs import Rejections


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now_s = 0.0
        self.rejections = Rejections(self.lines.append, clock=lambda: self.now_s)


def test_a_kind_is_logged_once_in_ten_seconds_and_then_says_how_many():
    log = Log()
    for size in range(5):
        log.rejections.add(f"only {size} bytes of 'x{size}' came")
    assert log.lines == ["only 0 bytes of 'x0' came"]
    log.now_s = 10.0
    log.rejections.add("only 9 bytes of 'y' came")
    assert log.lines[1:] == ["only 9 bytes of 'y' came (4 more like it since)"]
    assert log.rejections.count == 6


def test_another_kind_is_logged_at_once():
    log = Log()
    log.rejections.add("too short")
    log.rejections.add("too long")
    assert log.lines == ["too short", "too long"]


def test_what_is_remembered_is_bounded():
    log = Log()
    for index in range(1000):
        log.rejections.add("".join(chr(ord("a") + int(digit)) for digit in str(index)))
    assert log.rejections.count == len(log.lines) == 1000
    assert len(log.rejections._kinds) <= 64
