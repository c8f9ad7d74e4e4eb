"""Real-time priority and locked memory, where the system grants them."""

from __future__ import annotations

import ctypes
import os
import sys
import threading

_MCL_CURRENT, _MCL_ONFAULT = 1, 4


def prioritise_thread(priority: int) -> str:
    """Give the calling thread a real-time priority; returns why not, empty where it was granted."""
    if sys.platform != "linux":
        return "only Linux has SCHED_FIFO"
    try:
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(priority))
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
