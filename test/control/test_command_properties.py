"""The control step as a whole: whatever the policy, the robot and the settings do, every command is one to follow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from fakes import ScriptedPolicy, make_observation
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.control.limits import bounds_of
from flashvla_ros.control.safety import resting
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec

DELTA, VELOCITY, ABSOLUTE, GRIPPER = ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE, ActionKind.GRIPPER
SPECS = (
    ActionSpec(("x", "y", "z", "gripper"), (DELTA, VELOCITY, DELTA, GRIPPER), 0.1),
    ActionSpec(("x", "y", "z", "rx", "ry", "rz"), (ABSOLUTE,) * 6, 0.1),
    ActionSpec(("x", "y", "z", "qx", "qy", "qz", "qw", "gripper"), (ABSOLUTE,) * 7 + (GRIPPER,), 0.1),
)
BOX = {"limits.workspace_lower": [-0.5, -0.4, 0.0], "limits.workspace_upper": [0.5, 0.4, 0.6]}
POSE = {"rx": 3.1, "ry": 0.0, "rz": -3.1, "qx": 1.0, "qy": 0.0, "qz": 0.0, "qw": 0.0}


def random_settings(random: np.random.Generator, spec: ActionSpec) -> Settings:
    """Any speed, ramp, step and mode, with a box or without; now and then dry."""
    bound = [math.pi] * spec.size
    values: dict[str, Any] = {
        "action.names": list(spec.names),
        "action.kinds": [str(kind) for kind in spec.kinds],
        "gate.mode": str(random.choice(["off", "guarded"])),
        "control.speed_scale": float(random.choice([0.0, 0.1, 0.5, 1.0])),
        "control.ramp_s": float(random.choice([0.0, 0.5])),
        "control.dry_run": bool(random.random() < 0.2),
        "limits.max_step": [0.05] * spec.size if random.random() < 0.5 else [],
    }
    if random.random() < 0.7:
        values |= {"limits.lower": [-value for value in bound], "limits.upper": bound}
    return Settings().with_values(values | (BOX if random.random() < 0.5 else {}))


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_no_sequence_gives_a_command_outside_the_limits_or_a_motion_at_scale_0(seed: int) -> None:
    random = np.random.default_rng(seed)
    spec = SPECS[seed % len(SPECS)]
    actions = random.choice([0.01, 1.0, 1e3]) * random.uniform(-1, 1, (5, spec.size))
    stepper = Stepper(ScriptedPolicy(actions.tolist(), scale=1.0), spec)
    for number in range(8):
        values = random_settings(random, spec)
        where = {**POSE, **dict(zip("xyz", random.uniform(-0.7, 0.7, 3).tolist(), strict=True))}
        if random.random() < 0.2:
            where = {}
        if random.random() < 0.2:
            stepper.reset(Reason.IMAGE_TIMEOUT)
        before, held = stepper.state, stepper.state.held(1.0 + 0.1 * number, 0.1)
        observation = dataclasses.replace(make_observation(1.0 + 0.1 * number), pose=where)
        try:
            result = stepper.step(observation, values)
        except ActionError:
            assert stepper.state is before  # the robot is stopped, and nothing was remembered
            continue
        bounds = bounds_of(values.limits, spec)
        assert np.isfinite(result.command).all()
        starts = [resting(spec, held, where), resting(spec, None, where), *([] if held is None else [held])]
        low, high = bounds.lower.copy(), bounds.upper.copy()
        for index in np.flatnonzero(bounds.absolute):  # one that starts outside is on its way back
            low[index] = min(low[index], *(start[index] for start in starts if not np.isnan(start[index])), np.inf)
            high[index] = max(high[index], *(start[index] for start in starts if not np.isnan(start[index])), -np.inf)
        assert (result.command >= low).all()
        assert (result.command <= high).all()
        assert 0.0 <= result.speed_scale <= values.control.speed_scale
        if result.speed_scale == 0.0:
            _stands_still(result.command, before.command, where, spec)


def _stands_still(command: np.ndarray, before: np.ndarray | None, where: dict[str, float], spec: ActionSpec) -> None:
    """Every dimension is at 0 speed, or where it was commanded or measured before."""
    for index, (name, kind) in enumerate(zip(spec.names, spec.kinds, strict=True)):
        if kind in (DELTA, VELOCITY):
            assert (command[:, index] == 0.0).all()
        elif kind is ABSOLUTE:
            starts = ([] if before is None else [before[-1, index]]) + ([where[name]] if name in where else [])
            away = [abs(command[0, index] - start) for start in starts]
            if index in spec.angles:
                away = [abs(distance - 2 * math.pi * round(distance / (2 * math.pi))) for distance in away]
            assert min(away) < 1e-9, name
