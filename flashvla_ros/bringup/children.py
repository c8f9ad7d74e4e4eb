"""Child processes that never outlive their parent, and whose last words are kept."""

from __future__ import annotations

import collections
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

from flashvla_ros.nodes.process import end_with_parent

_LAST_LINES = 15
_LAST_WORDS_S = 1.0  # in which what a process that has ended wrote is read
_GRACE_S = 20.0  # the robot stops at once; ending a process with a model in it takes a loaded machine longer
_PROBLEM = re.compile(r"\[(WARN|ERROR|FATAL)\]")


class Child:
    """One process in a process group of its own, so that Ctrl-C reaches the parent alone, which then orders the end.

    Args:
        name: For messages.
        command: Program and arguments.
        show: Gets the lines of its output that name a problem, or all of them where `verbose` is set.
        verbose: Show every line.
    """

    def __init__(self, name: str, command: Sequence[str], show: Callable[[str], None], *, verbose: bool) -> None:
        self.name = name
        self._show = show
        self._verbose = verbose
        self._lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._process = subprocess.Popen(  # noqa: S603  # our own modules, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
            start_new_session=True,
            preexec_fn=end_with_parent,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Number of the process, for whoever watches it."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def last_lines(self) -> list[str]:
        """The end of its output."""
        self._reader.join(timeout=_LAST_WORDS_S)
        return list(self._lines)

    def stop(self) -> int:
        """Ask it to end, make it end, and return its exit code."""
        for number, patience_s in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, None)):
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
            try:
                code = self._process.wait(patience_s)
                self._reader.join(timeout=_LAST_WORDS_S)  # before others say that it has ended
                return code
            except subprocess.TimeoutExpired:
                self._show(f"{self.name} does not end after {patience_s:g} s; it is killed")
        raise AssertionError("a killed process has ended")

    def _read(self) -> None:
        for line in self._process.stdout or ():
            text = line.rstrip()
            self._lines.append(text)
            if self._verbose or _PROBLEM.search(text):
                self._show(f"{self.name}: {text}")


def stop_all(children: Sequence[Child]) -> None:
    """End children one after another, in this order."""
    for child in children:
        child.stop()
