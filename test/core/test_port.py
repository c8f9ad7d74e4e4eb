"""What wraps a policy is one itself, and changes nothing but what it is there for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fakes import ScriptedPolicy, make_observation

from flashvla_ros.core.policy import Request, TimedPolicy
from flashvla_ros.core.settings import PruningSettings

REQUEST = Request(make_observation(), PruningSettings())


def test_a_timed_policy_hands_the_request_on_and_notes_how_long_the_answer_took() -> None:
    now_s = [5.0]

    def before(_call: int) -> None:
        now_s[0] += 0.25

    policy = ScriptedPolicy(before=before)
    timed = TimedPolicy(policy, clock=lambda: now_s[0])
    result = timed.infer(REQUEST)
    assert policy.requests == [REQUEST]
    assert result.elapsed_s == 0.25
    plain = dataclasses.asdict(ScriptedPolicy().infer(REQUEST))
    for name, value in dataclasses.asdict(result).items():
        if name != "elapsed_s":
            np.testing.assert_equal(value, plain[name], name)
    assert timed.action_size == policy.action_size


def test_a_timed_policy_raises_what_the_policy_raises() -> None:
    def before(_call: int) -> None:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        TimedPolicy(ScriptedPolicy(before=before)).infer(REQUEST)
