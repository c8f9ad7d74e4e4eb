"""Random commands through the guard's rules: ``python test/guard/fuzz_guard.py --commands 1000000``.

Some are what the policy of test/control/fuzz_steps.py answers, nonsense included, the others a walk near the limits;
publishers come and go, the clock jumps, buttons are pressed. An oracle of its own holds what passes to the
limits. A failure names its seed.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from pathlib import Path

import numpy as np

from flashvla_ros.core.policy import Request
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.core.types import ActionKind, FloatArray, Inference, Observation
from flashvla_ros.guard.rules import Age, Guard, GuardStop
from flashvla_ros.guard.settings import GuardSettings

sys.path.append(str(Path(__file__).parents[1] / "control"))

from fuzz_steps import FuzzedAnswers

_RUN = 500
_SLACK = 1e-8
_DT_S = 0.1
_NOTHING = Inference(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(0, np.int64), None, 0)
_REQUEST = Request(Observation({}, "a", 0.0), PruningSettings(method="none"))


class GuardFuzz:
    """One guard, its publisher and what has been seen of them."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seen: collections.Counter[str] = collections.Counter()
        rng = self.rng
        kinds = [str(kind) for kind in rng.choice(["delta", "velocity", "absolute"], size=rng.integers(1, 8))]
        size = len(kinds)
        self.names = tuple(f"j{index}" for index in range(size))
        if "velocity" in kinds:  # one controller of an array takes velocities, or positions
            kinds = ["velocity"] * size
        self.upper = rng.choice([0.01, 1.0, 100.0]) * (0.1 + rng.random(size))
        self.step = 0.3 * self.upper if rng.random() < 0.7 else np.full(size, np.inf)
        self.speed = 2.0 * self.upper if rng.random() < 0.5 else np.full(size, np.inf)
        values = {
            "command.type": str(rng.choice(["Float64MultiArray", "JointTrajectory"])),
            "action.names": self.names,
            "action.kinds": tuple(kinds),
            "action.dt_s": _DT_S,
            "limits.lower": tuple(-self.upper),
            "limits.upper": tuple(self.upper),
            "limits.max_step": tuple(self.step) if np.isfinite(self.step).all() else (),
            "limits.joint_velocity": tuple(self.speed) if np.isfinite(self.speed).all() else (),
            "guard.stop_action": str(rng.choice(["zero", "hold", "none"])),
            "guard.max_age_s": 1.0,
        }
        self.covariance = None
        if rng.random() < 0.3:
            mix = rng.normal(size=(size, size)) * self.upper[:, None]
            self.covariance = mix @ mix.T + np.diag((0.5 * self.upper) ** 2)
            values["guard.step_matrix"] = tuple(np.linalg.cholesky(np.linalg.inv(self.covariance)).T.ravel())
        self.guard = Guard(GuardSettings.of(values))
        rows = 4 if values["command.type"] == "JointTrajectory" and rng.random() < 0.5 else 1
        self.answers, self.rows = FuzzedAnswers(rng, size, rows), rows
        self.now_s, self.passed, self.told = 1000.0, None, None
        self.publisher = self.follows = b"a"
        self.scale = self.upper * rng.choice([0.3, 0.9, 1.2])

    def run(self, count: int) -> None:
        """Send so many commands.

        Raises:
            AssertionError: One passed that should not have.
        """
        for _ in range(count):
            self._disturb()
            age = Age(self._age_s(), self._age_s())
            values = self._values()
            positions = dict(zip(self.names, self.rng.normal(size=len(self.names)).tolist(), strict=True))
            if self.rng.random() < 0.1:
                positions = {}
            latched = self._latched
            moves = self.guard.due_s < np.inf
            good, stop = self.guard.command(values, age, self.now_s, positions, publisher=self.publisher)
            self.seen["commands"] += 1
            self._note(stop)
            if good:
                self.seen["passed"] += 1
                assert not latched, "passed while an emergency stop holds"
                assert self.follows == self.publisher or not moves, "passed from another publisher"
                self.follows = self.publisher
                self._check(values, age, positions)
                self.passed = values
            else:
                self.seen["refused"] += 1

    def _one_of(self, *values: float) -> float:
        return values[int(self.rng.random() * len(values))]

    def _age_s(self) -> float:
        return self._one_of(3.0, -2.0) if self.rng.random() < 0.01 else self._one_of(0.0, 0.01)

    @property
    def _latched(self) -> bool:
        stop = self.guard.stopped_by
        return stop is not None and stop.cause is Reason.EMERGENCY_STOP

    def _values(self) -> FloatArray:
        kind = self.rng.random()
        if kind < 0.08:
            return np.asarray(self.answers(_REQUEST, _NOTHING).action)  # of any size, or none that may be followed
        near = np.zeros(len(self.names)) if self.passed is None else self.passed[-1]
        reach = np.where(np.isfinite(self.step), self.step, self.upper) * self._one_of(0.1, 0.9, 1.0)
        rows = self.rows
        values = near + np.cumsum(reach * self.rng.uniform(-1.0, 1.0, (rows, near.size)) / rows, axis=0)
        values = np.clip(values, -self.scale, self.scale)
        if kind > 0.99:
            values[-1, self.rng.integers(near.size)] = self.rng.choice([np.nan, np.inf, -np.inf])
        return values

    def _check(self, values: FloatArray, age: Age, positions: dict[str, float]) -> None:
        """Hold a command that passed to every limit, by other means than the rules'."""
        assert self.guard.writers == 1, "passed with two publishers"
        assert abs(age.stamp_s) <= 1.0 and abs(age.transit_s) <= 0.2, "passed though old"
        assert values.ndim == 2 and values.shape[1] == len(self.names), "passed in another shape"
        assert np.isfinite(values).all(), "passed and is not finite"
        absolute = np.array([kind is ActionKind.ABSOLUTE for kind in self.guard.spec.kinds])
        if not (absolute.any() or values.any()):
            return  # it stops the robot
        most = np.where(absolute, np.minimum(self.step, self.speed * _DT_S), self.step)
        if (~absolute).any():
            assert (np.abs(values[:, ~absolute]) <= self.speed[~absolute] + _SLACK).all(), "passed too fast"
        slack = _SLACK * np.maximum(self.upper, 1.0)
        assert (np.abs(np.diff(values, axis=0)) <= most + slack).all(), "passed with too large a step inside"
        inside = False
        for before in self._references(absolute, positions):
            if not self._returns(values, before, absolute):
                continue
            inside = True
            start = np.where(absolute, before, np.clip(before, -self.upper, self.upper))
            near = (np.abs(values[0] - start) <= most + slack).all()
            if near and self._likely(np.diff(values, axis=0, prepend=before[None])):
                return
        raise AssertionError("passed with too large a step" if inside else "passed outside its range")

    def _returns(self, values: FloatArray, before: FloatArray, absolute: FloatArray) -> bool:
        """Whether each row is in its range, or, of a joint that is outside, no further out than the row before."""
        most = np.maximum(self.upper, np.where(absolute, np.abs(np.nan_to_num(before)), 0.0)) * (1 + _SLACK)
        for row in values:
            if not ((np.abs(row) <= self.upper * (1 + _SLACK)) | (absolute & (np.abs(row) <= most))).all():
                return False
            most = np.maximum(self.upper, np.where(absolute, np.abs(row), 0.0)) * (1 + _SLACK)
        return True

    def _likely(self, steps: FloatArray) -> bool:
        """Whether the Mahalanobis distance of every step [T, D] is at most 1."""
        if self.covariance is None:
            return True
        squares = (steps * np.linalg.solve(self.covariance, steps.T).T).sum(axis=1)
        return bool((squares <= 1.0 + 1e-6).all())

    def _references(self, absolute: FloatArray, positions: dict[str, float]) -> FloatArray:
        """Rows that the robot may be following: of the command in force, or where it rests."""
        if self.passed is not None:
            return self.passed
        told = np.full((1, len(self.names)), np.nan) if self.told is None else self.told.copy()
        told[:, ~absolute] = 0.0
        if positions:
            told[:, absolute] = np.array([positions[name] for name in self.names])[absolute]
        free = ~np.isfinite(self.step) & ~np.isfinite(self.speed) & (self.covariance is None)  # no step to keep
        return np.where(np.isnan(told) & free, 0.0, told)

    def _note(self, stop: GuardStop | None) -> None:
        if stop is None:
            return
        self.seen[f"stop {stop.cause}"] += 1
        if stop.values is not None:
            assert stop.values.shape == (1, len(self.names)), "a stop action of another shape"
            assert np.isfinite(stop.values).all(), "a stop action is not finite"
            moving = [kind is not ActionKind.ABSOLUTE for kind in self.guard.spec.kinds]
            assert not stop.values[0, moving].any(), "a stop action moves"
        told = self.passed if stop.values is None else stop.values
        self.told, self.passed = self.told if told is None else told, None

    def _disturb(self) -> None:
        rng = self.rng
        self.now_s += self._one_of(0.0, 0.02, _DT_S, _DT_S, _DT_S, 0.4)
        chance = rng.random()
        if chance < 0.005:
            self.publisher = bytes([rng.integers(97, 100)])
        elif chance < 0.01:
            self.guard.writers = int(rng.integers(0, 4)) or 1
        elif chance < 0.02:
            self.guard.alive = bool(rng.random() < 0.7)
        elif chance < 0.03:
            self._note(self.guard.stop(Reason.EMERGENCY_STOP, "pressed", self.now_s))
        elif chance < 0.06:
            self.guard.reset(self.now_s)
        elif chance < 0.08:
            self.now_s += float(rng.choice([5.0, 3600.0]))
        elif chance < 0.2:
            self.guard.writers, self.guard.alive = 1, True
        if rng.random() < 0.5:
            self._note(self.guard.tick(self.now_s))


def fuzz_guard(commands: int, seed: int) -> dict[str, int]:
    """Send at least so many commands, to guards with seeds from `seed` on; returns what was seen.

    Raises:
        AssertionError: A promise was broken; its text has the seed.
    """
    seen: collections.Counter[str] = collections.Counter()
    while seen["commands"] < commands:
        run = GuardFuzz(seed + seen["guards"])
        try:
            run.run(_RUN)
        except Exception as error:
            place = f"seed {seed + seen['guards']}, command {run.seen['commands']}"
            raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error
        seen.update(run.seen)
        seen["guards"] += 1
    return dict(seen)


def main() -> None:
    """Run, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", type=int, default=1_000_000, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first guard (%(default)s)")
    args = parser.parse_args()
    started_s = time.monotonic()
    print(fuzz_guard(args.commands, args.seed), f"{time.monotonic() - started_s:.0f} s")


if __name__ == "__main__":
    main()
