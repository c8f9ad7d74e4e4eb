"""The policy of a recording: its checkpoint, or, where it ran elsewhere, the answers that the recording holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from flashvla_ros.bags.steps import RecordedStep, RunLog
from flashvla_ros.core.errors import BagError, SettingsError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import FloatArray, Inference
from flashvla_ros.vla.loading import LoadedPolicy, load_policy

_ROUNDING_NS = 10_000  # a stamp in seconds has a quarter of a microsecond of precision


def recorded_policy(settings: Settings, log: RunLog) -> LoadedPolicy:
    """Return the policy that answers as the recorded one did.

    Raises:
        BagError: The policy ran elsewhere, and the recording has no answers of it.
        CheckpointError: The checkpoint is not there.
    """
    if not settings.model.remote:
        return load_once(settings)
    known = log.first
    policy = RecordedAnswers(log.steps, settings)
    return LoadedPolicy(policy, platform=known.platform if known else {})


@functools.lru_cache(maxsize=1)
def load_once(settings: Settings) -> LoadedPolicy:
    """Load the model once for all the bags that this process works on.

    Raises:
        CheckpointError: The checkpoint is not there.
        SettingsError: The policy ran elsewhere, so that nobody can ask it.
    """
    if settings.model.remote:
        raise SettingsError(
            f"{settings.model.remote} drove the robot, and every image must be asked about: give a policy that runs "
            f"here, with --set model.remote= and --set model.checkpoint=DIR"
        )
    return load_policy(settings)


class RecordedAnswers:
    """Answers as a server once did, in the order of the recorded steps.

    Args:
        steps: Of the recording.
        settings: Of its node.
    """

    def __init__(self, steps: Sequence[RecordedStep], settings: Settings) -> None:
        self.action_size = len(settings.action.names)
        self._scale = np.array(settings.remote.scale or (1.0,))
        self._answers: list[tuple[int, FloatArray]] = []
        for step in steps:
            if len(step.values.get("answer", ())) and math.isfinite(step.values["age_s"]):
                asked_ns = step.stamp_ns - round(step.values["age_s"] * 1e9)
                self._answers.append((asked_ns, step.rows("answer", self.action_size)))
        self._next = 0
        if not self._answers:
            raise BagError(
                f"{settings.model.remote} drove the robot, and the recording has none of its answers (~/gate): give "
                f"another policy with --set model.remote= and --set model.checkpoint=…"
            )

    def infer(self, request: Request) -> Inference:
        """Return the answer that was given to an observation.

        Raises:
            BagError: None was.
        """
        stamp_s = request.observation.stamp_s
        for index in range(self._next, len(self._answers)):
            asked_ns, action = self._answers[index]
            if abs(asked_ns - stamp_s * 1e9) < _ROUNDING_NS:
                self._next = index + 1
                return Inference.tokenless(action, self._scale)
        raise BagError(f"the recording has no answer of the remote policy to the image at {stamp_s:.3f} s")
