"""Twenty thousand random steps of the million that are run by hand, and proof that the check can fail."""

from __future__ import annotations

import pytest
from fuzz_steps import fuzz

from flashvla_ros.control import safety
from flashvla_ros.gate import decision

STEPS = 20_000


@pytest.mark.timeout(600)
def test_no_step_breaks_a_promise():
    seen = fuzz(STEPS, seed=10**6)
    print(seen)
    assert seen["steps"] >= STEPS
    assert min(seen[count] for count in ("refused", "reused", "clamped")) > STEPS // 100
    assert len(seen["reasons"]) >= 14


def test_a_command_that_is_not_checked_is_found(monkeypatch):
    monkeypatch.setattr(safety, "check", lambda *_: None)
    with pytest.raises(AssertionError, match=r"seed \d+, step \d+"):
        fuzz(2000, seed=0)


def test_a_reuse_beyond_its_age_is_found(monkeypatch):
    monkeypatch.setattr(decision, "_guard", lambda *_: None)
    with pytest.raises(AssertionError, match="gate.max_age_s"):
        fuzz(20_000, seed=0)
