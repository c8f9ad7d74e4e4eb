"""Small stand-ins for logic tests: a policy that answers from a script, and observations to feed it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from flashvla_ros.core.policy import Request
from flashvla_ros.core.types import ActionKind, ActionSpec, Inference, Observation

SPEC = ActionSpec(
    names=("x", "y", "z", "gripper"),
    kinds=(ActionKind.DELTA, ActionKind.DELTA, ActionKind.DELTA, ActionKind.GRIPPER),
    dt_s=0.1,
)


class ScriptedPolicy:
    """Answers the n-th call with the n-th normalised action and kept set, then goes on with the last ones.

    Args:
        actions: Normalised, [D] or [T, D] each.
        kept: Indices of the selected visual tokens, None where nothing is scored.
        scale: Of the action in the units of the command.
        before: Runs at the start of each inference with the number of the call: raise, sleep or count there.
        answer: Is handed the request and the scripted answer; what it returns is answered.

    Attributes:
        requests: What it was asked so far, but for calls that `before` ended.
    """

    def __init__(
        self,
        actions: Sequence[Sequence[float]] = ((0.5, 0.0, 0.0, 1.0),),
        kept: Sequence[Sequence[int] | None] = (tuple(range(40)),),
        scale: float = 0.01,
        before: Callable[[int], None] = lambda _call: None,
        answer: Callable[[Request, Inference], Inference] = lambda _request, scripted: scripted,
    ) -> None:
        self._actions = [np.atleast_2d(np.asarray(action, dtype=np.float64)) for action in actions]
        self._kept = [None if tokens is None else np.asarray(tokens, dtype=np.int64) for tokens in kept]
        self._scale = scale
        self._before, self._answer = before, answer
        self.calls = 0
        self.requests: list[Request] = []

    @property
    def action_size(self) -> int:
        return int(self._actions[0].shape[1])

    def infer(self, request: Request) -> Inference:
        call = self.calls
        self.calls += 1
        self._before(call)
        self.requests.append(request)
        normalized = self._actions[min(call, len(self._actions) - 1)]
        scripted = Inference(
            action=normalized * self._scale,
            normalized=normalized,
            tokens=np.zeros(normalized.size, dtype=np.int64),
            kept=self._kept[min(call, len(self._kept) - 1)],
            visual_tokens=64,
        )
        return self._answer(request, scripted)


def make_observation(
    stamp_s: float = 0.0, instruction: str = "open the drawer", level: int = 100, size: tuple[int, int] = (64, 64)
) -> Observation:
    """A uniform grey picture of `level` at `stamp_s`."""
    image = np.full((*size, 3), level, dtype=np.uint8)
    return Observation(images={"image": image}, instruction=instruction, stamp_s=stamp_s, received_s=stamp_s)


class HeldPolicy(ScriptedPolicy):
    """Runs at its second call until it is let go.

    Attributes:
        entered: Set once that call has begun.
        go_on: Set it to let the call end; it ends by itself after a minute.
    """

    def __init__(self) -> None:
        super().__init__(before=self._hold)
        self.entered, self.go_on = threading.Event(), threading.Event()

    def _hold(self, call: int) -> None:
        if call == 1:
            self.entered.set()
            self.go_on.wait(60)
