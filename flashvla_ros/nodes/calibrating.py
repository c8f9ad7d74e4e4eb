"""What calibration asks of the node: thresholds that nobody else sets, and a file that keeps what was learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode

from flashvla_ros.control.keeping import CalibrationFile
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.paths import user_path
from flashvla_ros.core.settings import CalibrationSettings, Settings
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.gate.score import scored, thresholds

_SAVE_S = 5.0  # what a killed node loses at most, as long as the disk answers
_PATIENCE_S = 5.0  # with a disk that does not
_MOVED = ("delta", "max_angle_deg", "max_reuse")


class Calibrating:
    """Keeps what the thresholds learn over deactivations and, where a file is named, over starts.

    Args:
        node: Whose timer saves it.
        learnt: Returns what the running stepper knows; None where there is none.
    """

    def __init__(self, node: LifecycleNode, learnt: Callable[[], CalibrationState | None]) -> None:
        self._node, self._learnt = node, learnt
        self._known: CalibrationState | None = None
        self._file: CalibrationFile | None = None
        self._saver = ThreadPoolExecutor(1, "flashvla-calibration")  # a disk that hangs must not stop the robot
        self._saving: Future[None] | None = None
        self._timer = node.create_timer(_SAVE_S, self._save, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def take_up(self, settings: CalibrationSettings, checkpoint: str) -> CalibrationState:
        """Return what to begin with.

        Raises:
            SettingsError: The file is in use by another node, of another checkpoint, or no such file.
        """
        self._known = self._learnt() or self._known  # what the activation before has learnt
        if settings.state_file and self._file is None:
            file = CalibrationFile(user_path(settings.state_file), checkpoint)
            try:
                self._known = file.read()
            except SettingsError:
                file.close()
                raise
            self._file = file
        return self._known or CalibrationState()

    def close(self) -> None:
        """Save a last time, and let others have the file."""
        self._node.destroy_timer(self._timer)
        if self._settled():
            self._save()
            if self._settled() and self._file is not None:
                self._file.close()
        self._saver.shutdown(wait=False)
        self._file = None

    def _save(self) -> None:
        """Begin to keep what is known now, unless the disk still has the last of it."""
        self._known = self._learnt() or self._known
        if self._file is None or self._known is None:
            return
        if self._saving is not None and not self._saving.done():
            self._warn("the disk does not answer")
            return
        self._saving = self._saver.submit(self._write, self._file, self._known)

    def _settled(self) -> bool:
        """Wait until nothing is being saved, but not for ever."""
        if self._saving is None or wait([self._saving], _PATIENCE_S).done:
            return True
        self._node.get_logger().error(f"the disk has not answered for {_PATIENCE_S:g} s: calibration's last is lost")
        return False

    def _write(self, file: CalibrationFile, state: CalibrationState) -> None:
        try:
            file.save(state)
        except Exception as error:  # noqa: BLE001  # whatever it is, it must not stop the robot
            self._warn(str(error))

    def _warn(self, why: str) -> None:
        self._node.get_logger().warning(f"calibration is not kept: {why}", throttle_duration_sec=60.0)


def check_thresholds(before: Settings, after: Settings) -> None:
    """Refuse thresholds that calibration would overwrite at once.

    Raises:
        SettingsError: One is set while calibration is on.
    """
    if not before.gate.calibration == after.gate.calibration == "online":
        return
    for name in _MOVED:
        if getattr(before.gate, name) != getattr(after.gate, name):
            raise SettingsError(
                f"gate.{name} cannot be set while gate.calibration is online, which moves it: set calibration.risk, or "
                "gate.calibration to off first"
            )


def last_thresholds(settings: Settings, state: CalibrationState | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the thresholds that stay in force where `values` switch calibration off; nothing where they do not."""
    if settings.gate.calibration != "online" or values.get("gate.calibration") != "off" or state is None:
        return {}
    if scored(settings.calibration):  # λ was none of theirs: the user's own come back
        return {}
    gate = thresholds(state.permissiveness, settings.gate, settings.calibration)
    return {f"gate.{name}": getattr(gate, name) for name in _MOVED}
