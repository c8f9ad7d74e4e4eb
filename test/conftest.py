"""What every test process needs before it imports ROS, MuJoCo or torch."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

_HELD: list[IO[str]] = []  # a lock lasts as long as its file stays open


def _claim_ros_domain() -> int:
    """Return a ROS domain that no other test process on this machine uses, and hold it until this one ends."""
    for domain in range(1, 100):
        lock = (Path(tempfile.gettempdir()) / f"flashvla_ros_test_domain_{domain}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            _HELD.append(lock)
            return domain
    raise RuntimeError("99 test processes hold every ROS domain")


# A shell's background job ignores SIGINT, and so would every node that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["ROS_DOMAIN_ID"] = str(_claim_ros_domain())
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes run side by side, and the models are small

# Folders and files in which few tests take minutes, most of them waiting for other processes or for a clock; and the
# models, whose files would otherwise be the last, each on one worker alone.
_LONG = ("test_soak", "test_install", "test_engine", "system", "nodes", "training", "vla", "sim", "bringup", "bags")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is left alone with it at the end."""
    places = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: min(places.get(name, len(_LONG)) for name in (item.path.parent.name, item.path.stem)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Let go of what an error among the parameters was raised through: it lives as long as this process does.

    A node in its traceback stays in the ROS graph, and the tests that follow meet it there.
    """
    for value in getattr(getattr(item, "callspec", None), "params", {}).values():
        if isinstance(value, BaseException):
            value.__traceback__ = value.__context__ = value.__cause__ = None


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every collection of garbage: taking a test bench down asks for one."""
    gc.freeze()


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Starts a :class:`policy_server.ScriptedServer`, and closes it after the test."""
    pytest.importorskip("websockets", reason="the extra `remote` is not installed")
    from policy_server import ScriptedServer

    servers: list[ScriptedServer] = []

    def start(*arguments: Any, **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
