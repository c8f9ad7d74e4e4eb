"""What calibration asks of the node: thresholds that nobody else sets, and a file that keeps what was learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode

from flashvla_ros.control.keeping import CalibrationFile
from flashvla_ros.core.errors import FlashVLAError, SettingsError
from flashvla_ros.core.paths import checkpoint_folder, user_path
from flashvla_ros.core.provenance import check_outputs
from flashvla_ros.core.settings import Settings
from flashvla_ros.gate.calibration import CalibrationState
from flashvla_ros.gate.score import scored, thresholds

_SAVE_S = 5.0  # what a killed node loses at most
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
        self._saver = ThreadPoolExecutor(1, "flashvla-calibration")  # a slow disk must not stop the robot
        self._saving: Future[None] | None = None
        self._timer = node.create_timer(_SAVE_S, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def take_up(self, settings: Settings, checkpoint: str) -> CalibrationState:
        """Return what to begin with.

        Raises:
            SettingsError: The file is another node's, about another checkpoint, none, or would be a checkpoint's.
        """
        self._save().result()  # what the activation before has learnt
        if settings.calibration.state_file and self._file is None:
            path = user_path(settings.calibration.state_file)
            if not settings.model.remote:
                check_outputs(checkpoint_folder(settings.model.checkpoint), path)
            file = CalibrationFile(path, checkpoint)
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
        self._save()
        self._saver.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_timer(self) -> None:
        if self._saving is None or self._saving.done():
            self._saving = self._save()

    def _save(self) -> Future[None]:
        """Keep what is known now, after what is being saved."""
        self._known = self._learnt() or self._known
        return self._saver.submit(self._write, self._file, self._known)

    def _write(self, file: CalibrationFile | None, state: CalibrationState | None) -> None:
        if file is None or state is None:
            return
        try:
            file.save(state)
        except FlashVLAError as error:  # nor must a full one
            self._node.get_logger().warning(f"calibration is not kept: {error}", throttle_duration_sec=60.0)


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
