"""Stops the robot: a camera is silent or frozen, no command is made, the robot does not do as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flashvla_ros.control.deviation import DeviationWatch
from flashvla_ros.control.worker import State, Worker
from flashvla_ros.core.reasons import Reason

_PERIOD_S = 0.01  # between two looks: what it adds to a time-out
_SUSPENDED_S = 1.0  # without a look: the process was stopped for as long as DDS needs to give a reader up
_HEARTBEAT_S = 3.2  # Fast DDS delivers with its next heartbeat, every 3 s, what a stopped process did not take


class Watchdog:
    """Looks at a worker from a thread of its own, and once more before an image counts and before a command leaves.

    The process itself may have been stopped for a while, and the thread that goes on first is any one of them: a stop
    that is due comes before what would end its cause.

    Args:
        worker: The worker to watch; on the same clock.
        clock: Monotonic seconds.
    """

    def __init__(self, worker: Worker, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._worker = worker
        self._clock = clock
        self._deviation = DeviationWatch(worker.spec)
        self._arrived_s: dict[str, float] = {}
        self._changed_s: dict[str, float] = {}
        self._frozen: set[str] = set()
        self._looked_s: float | None = None
        self._held_until_s = 0.0
        self._looking = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flashvla-watchdog", daemon=True)
        worker.before_command = self.check

    def image_arrived(self, camera: str, *, same: bool = False) -> None:
        """Note a usable image of a camera; one that was rejected does not count.

        Args:
            camera: Its name.
            same: The picture is the one before it, byte for byte, as a stuck driver sends it; a sensor's noise makes
                every picture another one. It counts while the robot is commanded: one that stands still before its
                first command, or is stopped, may well look the same to a simulated camera. Once it has lasted for
                ``control.frozen_image_s`` the worker answers nothing before every camera shows another picture.
        """
        self.check()
        now_s = self._arrived_s[camera] = self._clock()
        limit_s = self._worker.settings.control.frozen_image_s
        judged = same and limit_s > 0.0 and (self._frozen or self._worker.state is State.RUNNING)
        if not judged:
            self._changed_s[camera] = now_s
            self._frozen.discard(camera)
            self._worker.frozen = bool(self._frozen)
        elif (elapsed_s := now_s - self._changed_s.setdefault(camera, now_s)) > limit_s:
            self._frozen.add(camera)
            self._worker.frozen = True
            self._worker.stop(
                Reason.FROZEN_IMAGE,
                f"camera {camera!r} has sent the same picture for {elapsed_s:.2f} s (control.frozen_image_s is "
                f"{limit_s:g}; 0 allows it, for a simulated camera)",
            )

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
            wrong = self._deviation.look(now_s, self._worker.in_force, self._worker.positions(), control)
            if wrong:
                self._worker.stop(Reason.DEVIATION, f"{wrong}; holds until ~/reset is called")
        if self._arrived_s:
            self._check_cameras(now_s, control.image_timeout_s)
        self._check_command(now_s)  # last, since the others say more of the cause
        self._check_suspended(now_s)

    def _check_suspended(self, now_s: float) -> None:
        """Hold the robot after the process was stopped: an emergency stop of that time may still be under way."""
        with self._looking:
            if self._looked_s is None:  # nobody looks all the time yet
                return
            gap_s, self._looked_s = now_s - self._looked_s, max(now_s, self._looked_s)
            if gap_s > _SUSPENDED_S:
                self._held_until_s = now_s + _HEARTBEAT_S
        if now_s >= self._held_until_s:
            return
        self._worker.keep_at_rest(
            Reason.IMAGE_TIMEOUT,
            f"this process was suspended; what was sent to it meanwhile, such as an emergency stop, may come "
            f"{_HEARTBEAT_S:g} s late, so the robot is held for that time",
        )

    def _check_command(self, now_s: float) -> None:
        """Stop a robot whose command is older than any step may take, whatever kept the steps from their end."""
        control, sent_s = self._worker.settings.control, self._worker.commanded_s
        pace_s = 1.0 / control.rate_hz if control.rate_hz > 0.0 else 0.0
        limit_s = control.image_timeout_s + control.inference_timeout_s + pace_s
        if sent_s is not None and now_s - sent_s > limit_s:
            self._worker.stop(
                Reason.COMMAND_TIMEOUT,
                f"no new command for {now_s - sent_s:.2f} s, though images arrive: instructions or parameters change "
                f"faster than the model answers (control.image_timeout_s and inference_timeout_s allow {limit_s:g} s)",
            )

    def _check_cameras(self, now_s: float, limit_s: float) -> None:
        camera, arrived_s = min(list(self._arrived_s.items()), key=lambda arrival: arrival[1])
        if now_s - arrived_s > limit_s:
            self._worker.keep_at_rest(
                Reason.IMAGE_TIMEOUT,
                f"no image of camera {camera!r} for {now_s - arrived_s:.2f} s (control.image_timeout_s is {limit_s:g})",
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
        self._looked_s = self._clock()
        while not self._closed.wait(_PERIOD_S):
            try:
                self.check()
            except Exception as error:  # noqa: BLE001  # whatever it is, nobody else would miss a silent camera
                self._worker.stop(Reason.FAULT, f"the watchdog cannot look: {error!r}")
