"""One client of a served policy: its own gate memory and its own steps, on a model that all clients share."""

from __future__ import annotations

import time
from typing import Any

import flashvla_ros
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.policy import Policy
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.remote import wire
from flashvla_ros.remote.mapping import STAMP, ObservationMap
from flashvla_ros.vla.loading import LoadedPolicy


class ServedClient:
    """Answers one client's messages, one after the other.

    Args:
        policy: The model; whoever calls :meth:`answer` sees to it that one thread at a time uses it.
        settings: Gate, pruning, names. Limits hold here too, where they are set.
    """

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self._settings = settings
        self._stepper = Stepper(policy, ActionSpec.of(settings.action))
        self._map = ObservationMap(settings.remote, settings.camera.names or ("image",))

    def answer(self, data: bytes | str) -> dict[str, Any]:
        """Run one control step on the observation in a message of openpi's protocol.

        Raises:
            FlashVLAError: The message is none, or the policy cannot use it.
        """
        now_s = time.monotonic()
        message = wire.unpack(data if isinstance(data, bytes) else b"")
        result = self._stepper.step(self._map.from_wire(message, now_s, now_s), self._settings)
        returned = {STAMP: message[STAMP]} if STAMP in message else {}
        return {
            self._settings.remote.actions: result.command,
            "gate": {"reused": not result.fresh, "reason": str(result.decision.reason)},
            "policy_timing": {"infer_ms": result.inference_s * 1e3},
            **returned,
        }


def metadata(loaded: LoadedPolicy, settings: Settings) -> dict[str, Any]:
    """Return what a server says of itself at each connection."""
    action = settings.action
    return {
        "flashvla": {
            "version": flashvla_ros.__version__,
            "names": list(action.names),
            "kinds": list(action.kinds),
            "dt_s": action.dt_s,
            "images": list(settings.remote.images),
            "state": list(settings.remote.state),
            "prompt": settings.remote.prompt,
            "returns": STAMP,
            "checkpoint": loaded.checkpoint,
            "platform": dict(loaded.platform),
        }
    }
