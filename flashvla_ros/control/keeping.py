"""What calibration has learnt, kept in a file from one start of a node to the next."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import IO

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import read_json, write_text
from flashvla_ros.gate.calibration import CalibrationState

_VERSION = 1


class CalibrationFile:
    """A file of one node's calibration; a second node that names it is refused.

    Args:
        path: The file; beside it, with ``.lock`` added, lies what keeps others away.
        checkpoint: Fingerprint of the weights that it is about.

    Raises:
        SettingsError: Another node has it, or it cannot be written there.
    """

    def __init__(self, path: Path, checkpoint: str) -> None:
        self.path, self._checkpoint = path.resolve(), checkpoint  # two links to a file are one file
        self._saved: CalibrationState | None = None
        self._lock = _locked(self.path)

    def read(self) -> CalibrationState:
        """Return what was kept, a new state where there is no file yet.

        Raises:
            SettingsError: It is about another checkpoint, or not such a file.
        """
        if not self.path.exists():
            return CalibrationState()
        try:
            content = read_json(self.path, SettingsError)
            version, checkpoint = content["version"], content["checkpoint"]
            state = CalibrationState.unpacked(content["state"], content["claim"]) if version == _VERSION else None
        except (KeyError, OverflowError, SettingsError, TypeError, ValueError) as error:
            raise SettingsError(
                f"calibration.state_file {self.path} holds no calibration: {error}; delete it, or name another file"
            ) from error
        if state is None or checkpoint != self._checkpoint:
            raise SettingsError(
                f"calibration.state_file {self.path} is of another {'version' if state is None else 'checkpoint'}: "
                "delete it, or name another file"
            )
        return state

    def save(self, state: CalibrationState) -> None:
        """Replace what was kept, unless it is the same.

        Raises:
            FlashVLAError: It cannot be written.
        """
        if state is self._saved:
            return
        content = {"version": _VERSION, "checkpoint": self._checkpoint, "claim": state.claim}
        write_text(self.path, json.dumps(content | {"state": state.packed().tolist()}) + "\n")
        self._saved = state

    def close(self) -> None:
        """Let others have it."""
        self._lock.close()


def _locked(path: Path) -> IO[str]:
    """Open the lock beside a file; it is free again when its process ends, however it ends."""
    if path.is_dir():
        raise SettingsError(f"calibration.state_file {path} is a folder: name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"calibration.state_file {path} cannot be kept: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise SettingsError(f"calibration.state_file {path} is in use by another node: name another file") from error
    return lock
