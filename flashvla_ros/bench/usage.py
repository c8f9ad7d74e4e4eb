"""What a process holds and what a machine gives: memory, threads, handles, processor time; Linux's /proc alone."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_SPIN_COUNT = 300_000  # a few milliseconds: long enough to be disturbed, short enough to be repeated


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a process holds at one moment.

    Attributes:
        rss_kib: Resident memory, pages shared with others included.
        anonymous_kib: The part of it that belongs to no file: heap and stacks. Shared memory of DDS is not in it.
        threads: Number of threads.
        handles: Number of open file descriptors.
        cpu_s: Processor time used so far, all threads together.
    """

    rss_kib: int
    anonymous_kib: int
    threads: int
    handles: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read one process.

        Raises:
            ProcessLookupError: There is no such process.
        """
        folder = Path("/proc") / str(pid)
        try:
            status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            handles = len(list((folder / "fd").iterdir()))
            rss, anonymous = (int(status[key].split()[0]) for key in ("VmRSS", "RssAnon"))
        except (FileNotFoundError, KeyError) as error:  # a process that has ended keeps its entry, without memory
            raise ProcessLookupError(f"process {pid} has ended") from error
        ticks = int(fields[11]) + int(fields[12])  # user and system
        return cls(rss, anonymous, int(status["Threads"]), handles, ticks * _TICK_S)


def spin_s() -> float:
    """Return the time that a fixed piece of arithmetic takes: what the machine's other work leaves of a processor."""
    started_s = time.perf_counter()
    total = 0
    for number in range(_SPIN_COUNT):
        total += number
    return time.perf_counter() - started_s
