"""Limits that are proposed from commands."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import SPEC

from flashvla_ros.control.proposal import propose


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_moves_may_always_stand_still(sign: float) -> None:
    """A robot that was only seen to go one way must be allowed to stop."""
    run = sign * np.linspace(0.01, 0.02, 50)[:, np.newaxis] * np.ones(4)
    limits = propose([run], SPEC, 1.0, 0.0).limits
    assert all(low <= 0.0 <= high for low, high in list(zip(limits.lower, limits.upper, strict=True))[:3])
    assert sorted((abs(limits.lower[3]), abs(limits.upper[3]))) == pytest.approx([0.01, 0.02], rel=1e-3)
