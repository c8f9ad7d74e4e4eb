"""A policy whose first answer is held to the reference engine's, before any command can come of it."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch

from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.policy import Policy, Request
from flashvla_ros.core.types import Draft, Inference
from flashvla_ros.vla.step import VLAPolicy

_LOG = logging.getLogger(__name__)

# Largest difference between normalised actions that the order of additions explains. In half precision the logits of
# two bins next to each other may tie, and a bin is 2/255 wide; in float32 they do not.
_TIE = {torch.float32: 0.0, torch.bfloat16: 2 / 255 + 1e-6, torch.float16: 2 / 255 + 1e-6}
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 5e-3}  # of an action that is not made of bins
_SHARED = {torch.float32: 1.0, torch.bfloat16: 0.9, torch.float16: 0.9}  # least share of the kept tokens


class CheckedPolicy:
    """Answers its first request with both engines, and with the fast one from then on only if they agree.

    A robot's first request comes after the warm-up on noise, so a buffer that kept something of it shows here. The
    tokens of the first answer are also given to the fast engine as a draft, which must change nothing. Where the two
    differ, the reference answers this request and all that follow.

    Attributes:
        checked: Whether a request was answered.
        difference: What differed, empty where nothing did.
    """

    def __init__(self, fast: VLAPolicy) -> None:
        self._fast = fast
        self._reference = fast.reference()
        self._policy: Policy = fast
        self.checked = False
        self.difference = ""

    @property
    def action_size(self) -> int:
        """D, the number of action dimensions."""
        return self._fast.action_size

    def infer(self, request: Request) -> Inference:
        """Run the model once, at the first request up to three times."""
        if self.checked:
            return self._policy.infer(request)
        answer, expected, self.difference = held_to(self._reference, self._fast, request)
        self.checked = True
        if not self.difference:
            _LOG.info("the first answer of the engine %s equals the reference's", self._fast.backend.engine)
            return answer  # and not `expected`: a replay that begins later in the run gets the same bits
        self._policy = self._reference
        _LOG.error("%s; the reference runs from here on", self.difference)
        return expected


def held_to(reference: VLAPolicy, fast: VLAPolicy, request: Request) -> tuple[Inference, Inference, str]:
    """Answer a request with both engines, with the fast one also with the reference's tokens as a draft.

    Returns:
        Its answer (the reference's where it fails), the reference's, and what differs: "" where rounding explains it.

    Raises:
        ObservationError: Neither can use this observation, which proves nothing.
        ActionError: The reference computes nothing that could be an action.
    """
    expected = reference.infer(request)
    name, dtype = fast.backend.engine, fast.backend.dtype
    try:
        answer = fast.infer(request)
        if what := difference(answer, expected, dtype):
            return answer, expected, f"the engine {name} differs from the reference: {what}"
        if expected.tokens.size:
            drafted = fast.infer(dataclasses.replace(request, draft=Draft(expected.tokens)))
            if what := difference(drafted, expected, dtype):
                return answer, expected, f"the engine {name} differs from the reference with a draft: {what}"
    except ActionError as error:
        return expected, expected, f"the engine {name} fails: {error}"
    return answer, expected, ""


def difference(got: Inference, expected: Inference, dtype: torch.dtype) -> str:
    """Return in words how two answers to one request differ, empty where rounding explains it.

    Where each value of the action has a token of its own, the first token that differs counts: those behind it follow
    from it. The kept tokens count too: they come from the middle of the network, where an action at the end of its
    range hides nothing.

    Args:
        got: Of the engine in question.
        expected: Of the reference.
        dtype: Of the weights.
    """
    ours, theirs = got.normalized.ravel(), expected.normalized.ravel()
    if ours.shape != theirs.shape:
        return f"an action of shape {list(got.normalized.shape)}, not {list(expected.normalized.shape)}"
    if expected.kept is not None:
        shared = np.intersect1d(got.kept if got.kept is not None else (), expected.kept).size
        if shared < _SHARED[dtype] * expected.kept.size:
            return f"only {shared} of {expected.kept.size} kept tokens are the same"
    if expected.tokens.size != theirs.size:
        error = float(np.abs(ours - theirs).max())
        return "" if error <= _ROUNDING[dtype] else f"the action by {error:.2g}, where [-1, 1] is its range"
    wrong = np.flatnonzero(got.tokens != expected.tokens)
    if not wrong.size or abs(ours[wrong[0]] - theirs[wrong[0]]) <= _TIE[dtype]:
        return ""
    first = int(wrong[0])
    return (
        f"action token {first} is {int(got.tokens[first])}, not {int(expected.tokens[first])}"
        f"{f', and {wrong.size - 1} after it' if wrong.size > 1 else ''}"
    )
