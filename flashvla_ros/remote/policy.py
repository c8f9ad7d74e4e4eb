"""A policy server behind the port: each inference is one question, and a bad answer stops the robot."""

from __future__ import annotations

import time
import weakref
from typing import Any

import numpy as np

from flashvla_ros.core.errors import RemoteError, SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionSpec, FloatArray, Inference, Observation
from flashvla_ros.remote import wire
from flashvla_ros.remote.client import PolicyClient
from flashvla_ros.remote.endpoint import Endpoint
from flashvla_ros.remote.mapping import STAMP, ObservationMap, chunk_of, form

NETWORK, MODEL = "network", "model"  # stages of an inference
_FIRST_ANSWER_S = 180.0  # a server may compile its model at the first question
_GRACE_S = 0.05  # the watchdog notices control.inference_timeout_s first, and names it


class RemotePolicy:
    """Asks a policy server.

    Args:
        client: The connection.
        settings: Of the node; names, sizes and the deadline are read once.
    """

    def __init__(self, client: PolicyClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings.remote
        self._spec = ActionSpec.of(settings.action)
        self._map = ObservationMap(settings.remote, settings.camera.names)
        self._scale = np.array(settings.remote.scale or (1.0,))
        self._timeout_s = settings.control.inference_timeout_s
        self._returns_stamp = False
        weakref.finalize(self, client.close)

    @classmethod
    def connect(cls, settings: Settings) -> RemotePolicy:
        """Connect, hold the server's metadata against the parameters, and ask once.

        Raises:
            SettingsError: The address may not be used so, or the server's policy is another.
            RemoteError: It does not answer, or its answer cannot be used.
        """
        policy = cls.reach(settings, _FIRST_ANSWER_S)
        policy._ask(policy._map.example(), _FIRST_ANSWER_S)
        return policy

    @classmethod
    def reach(cls, settings: Settings, deadline_s: float) -> RemotePolicy:
        """Do the same but for the question, within `deadline_s`; raises as :meth:`connect` does."""
        policy = cls(PolicyClient(Endpoint.of(settings.model.remote, settings.remote)), settings)
        policy._check(policy._client.connect(deadline_s), settings)
        return policy

    @property
    def action_size(self) -> int:
        """D, which the first answer has confirmed."""
        return self._spec.size

    @property
    def metadata(self) -> dict[Any, Any]:
        """What the server says of itself."""
        return self._client.metadata or {}

    @property
    def platform(self) -> dict[str, str]:
        """What computes its answers, as far as the server says."""
        own = self.metadata.get("flashvla")
        return {"device": "remote", **({"server": str(own.get("platform", ""))} if isinstance(own, dict) else {})}

    def infer(self, request: Request) -> Inference:
        """Ask for one observation.

        Raises:
            ObservationError: The server is to be told something that the observation lacks.
            RemoteError: No answer in time, or none that can be used.
        """
        return self._ask(request.observation, self._timeout_s + _GRACE_S)

    def check(self, changed: Settings) -> None:
        """Refuse a later deadline than this connection was made with.

        Raises:
            SettingsError: ``control.inference_timeout_s`` is above it.
        """
        if changed.control.inference_timeout_s > self._timeout_s:
            raise SettingsError(
                f"control.inference_timeout_s cannot rise above {self._timeout_s:g} s while model.remote is connected: "
                f"deactivate and clean up first"
            )

    def _ask(self, observation: Observation, deadline_s: float) -> Inference:
        started_s = time.monotonic()
        message = self._map.to_wire(observation)
        if self._returns_stamp:
            message[STAMP] = observation.stamp_s

        def read(answer: Any) -> tuple[FloatArray, float]:
            action = chunk_of(answer, self._settings, self._spec.size)
            stamp = answer.get(STAMP)
            if self._returns_stamp and not (isinstance(stamp, float) and stamp == observation.stamp_s):
                raise RemoteError(f"the server answered another observation, of stamp {form(stamp)}")
            return action, _model_s(answer)

        action, model_s = self._client.ask(message, deadline_s, read)
        elapsed_s = time.monotonic() - started_s
        model_s = min(model_s, elapsed_s)
        return Inference.tokenless(action, self._scale, {NETWORK: elapsed_s - model_s, MODEL: model_s})

    def _check(self, metadata: dict[Any, Any], settings: Settings) -> None:
        """What our own server says of its policy must be what the parameters say; others' metadata has any form."""
        own = metadata.get("flashvla")
        if not isinstance(own, dict):
            return
        self._returns_stamp = own.get("returns") == STAMP
        for name in ("names", "kinds", "dt_s"):
            here, there = getattr(settings.action, name), own.get(name)
            if wire.pack(there) != wire.pack(here):
                raise SettingsError(f"action.{name} is {here}, but {settings.model.remote} serves {form(there)}")


def _model_s(answer: dict[Any, Any]) -> float:
    """Seconds that the server's model took, by its own account; 0 where it gives none."""
    timing = answer.get("server_timing")
    milliseconds = timing.get("infer_ms") if isinstance(timing, dict) else None
    if not isinstance(milliseconds, int | float) or not 0.0 <= milliseconds < 1e9:
        return 0.0
    return milliseconds / 1e3
