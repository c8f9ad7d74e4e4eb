"""Real-time priority and locked memory, where the system grants them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

_MCL_CURRENT, _MCL_ONFAULT = 1, 4


def prioritise(priority: int) -> str:
    """Give every thread of the process a real-time priority; returns why not, empty where it was granted.

    One thread would not do: it waits for the interpreter, for locks and for the middleware, which an ordinary thread
    holds while the scheduler has no time for it. A thread that starts later inherits the priority.
    """
    if sys.platform != "linux":
        return "only Linux has SCHED_FIFO"
    try:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return f"no real-time priority ({error.strerror}); grant rtprio in /etc/security/limits.conf"
    return ""


def lock_memory() -> str:
    """Keep what the process uses, or will come to use of what it has mapped, out of swap; returns why not.

    What it maps later stays out of it: with a limit on locked memory, mapping would fail then.
    """
    if sys.platform != "linux":
        return "only Linux has mlockall"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT) != 0:
        reason = os.strerror(ctypes.get_errno())
        return f"memory is not locked ({reason}); grant memlock in /etc/security/limits.conf"
    return ""
