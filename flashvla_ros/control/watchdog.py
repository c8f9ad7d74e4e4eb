"""Stops the robot when a camera falls silent, the model does not return, or the robot does not do as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flashvla_ros.control.deviation import DeviationWatch
from flashvla_ros.control.worker import State, Worker
from flashvla_ros.gate.reasons import Reason

_PERIOD_S = 0.01  # between two looks: what it adds to a time-out


class Watchdog:
    """Looks at a worker from a thread of its own.

    Args:
        worker: Whom to watch; on the same clock.
        clock: Monotonic seconds.
    """

    def __init__(self, worker: Worker, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._clock = clock
        self._deviation = DeviationWatch(worker.spec)
        self._arrived_s: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flashvla-watchdog", daemon=True)

    def image_arrived(self, camera: str) -> None:
        """Note a usable image of a camera; one that was rejected does not count."""
        self._arrived_s[camera] = self._clock()

    def check(self) -> None:
        """Look once."""
        control, now_s = self._worker.settings.control, self._clock()
        since_s = self._worker.running_since_s
        if since_s is not None and now_s - since_s > control.inference_timeout_s:
            self._worker.stop(
                Reason.INFERENCE_TIMEOUT,
                f"no action after {now_s - since_s:.2f} s (control.inference_timeout_s is "
                f"{control.inference_timeout_s:g}): its late result will be dropped",
            )
        if control.max_deviation:
            wrong = self._deviation.look(now_s, self._worker.in_force, self._worker.positions, control)
            if wrong:
                self._worker.stop(Reason.DEVIATION, f"{wrong}; holds until ~/reset is called")
        if self._worker.state is not State.RUNNING:
            return
        for camera, arrived_s in list(self._arrived_s.items()):
            if now_s - arrived_s > control.image_timeout_s:
                self._worker.stop(
                    Reason.IMAGE_TIMEOUT,
                    f"no image of camera {camera!r} for {now_s - arrived_s:.2f} s (control.image_timeout_s is "
                    f"{control.image_timeout_s:g})",
                )

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(_PERIOD_S):
            self.check()
