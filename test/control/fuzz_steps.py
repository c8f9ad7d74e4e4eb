"""Random steps through gate and safety: ``python test/control/fuzz_steps.py --steps 1000000``.

Each run of a few hundred steps draws kinds of dimensions, limits, thresholds and a policy that answers anything from
sense to NaN, infinities, wrong shapes and huge numbers. Clocks jump, instructions and settings change in the middle.
After every step it is checked that nothing but the package's own errors was raised, that the command is finite and
inside its limits, that a refused step left the state as it was, and that a reuse kept every cap. A failure names its
seed.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import math
import sys
import time
from pathlib import Path

import numpy as np

from flashvla_ros.cli.results import write_results
from flashvla_ros.control.motion import slowed
from flashvla_ros.control.safety import resting
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper, StepperState
from flashvla_ros.core.chunk import elapsed_rows, in_force, replan_row
from flashvla_ros.core.errors import ActionError
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import ActionKind, ActionSpec, Inference, Observation

sys.path.append(str(Path(__file__).parents[1]))  # where it runs as a script

from fakes import ScriptedPolicy

_RUN = 250  # steps of one policy
_TOKENS = 64
_SLACK = 1e-9
_CHANGE, _JUMP, _TALK, _RESET, _FAULT = 0.05, 0.02, 0.02, 0.01, 0.1  # chances at each step


class FuzzedAnswers:
    """Answers as a generator says; every tenth answer is none that a robot may follow.

    Attributes:
        sound: Whether the last answer was one that may be followed.
    """

    def __init__(self, rng: np.random.Generator, size: int, rows: int) -> None:
        self.sound = True
        self._rng = rng
        self._rows, self._size = rows, size
        self._direction = rng.normal(size=(rows, size))

    def __call__(self, request: Request, _scripted: Inference) -> Inference:
        """Return a smooth motion of any size, or nonsense."""
        rng, pruning = self._rng, request.pruning
        self._direction += rng.normal(scale=rng.choice([0.001, 0.1, 3.0]), size=self._direction.shape)
        normalized = np.clip(self._direction, -1, 1)
        action = normalized * rng.choice([0.0, 1e-300, 0.01, 1.0, 1e6, 1e300])
        self.sound = rng.random() >= _FAULT
        if not self.sound:
            action, normalized = self._nonsense(action, normalized)
        kept = None
        if pruning.method != "none":
            count = max(1, round(pruning.keep_ratio * _TOKENS))
            kept = np.sort(rng.permutation(_TOKENS)[:count]) if rng.random() < 0.3 else np.arange(count)
        return Inference(action, normalized, np.zeros(0, np.int64), kept, _TOKENS)

    def _nonsense(self, action: np.ndarray, normalized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        broken = [action.copy(), normalized.copy()]
        which = int(self._rng.integers(2))
        kind = self._rng.integers(4)
        if kind == 0:
            broken[which].flat[self._rng.integers(action.size)] = self._rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 1:
            broken[which] = np.zeros((self._rows, self._size + 1))
        elif kind == 2:
            broken[which] = np.zeros((0, self._size))
        else:
            broken[which] = np.zeros(self._size)
        return broken[0], broken[1]


@dataclasses.dataclass
class Fuzz:
    """One run: a stepper, its policy and what has been seen of them.

    Attributes:
        steps, refused, reused, clamped: Counts.
        reasons: Of the decisions.
    """

    seed: int
    steps: int = 0
    refused: int = 0
    reused: int = 0
    clamped: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.reasons: collections.Counter[str] = collections.Counter()
        kinds = self.rng.choice(
            [kind.value for kind in ActionKind if kind.value in _KINDS], size=self.rng.integers(1, 8)
        )
        names = tuple(f"j{index}" for index in range(len(kinds)))
        self.settings = Settings().with_values({"action.names": names, "action.kinds": tuple(str(k) for k in kinds)})
        self.spec = ActionSpec(names, tuple(ActionKind(str(kind)) for kind in kinds), 0.1)
        self.answers = FuzzedAnswers(self.rng, self.spec.size, int(self.rng.choice([1, 1, 4])))
        self.stepper = Stepper(ScriptedPolicy([np.zeros(self.spec.size)], answer=self.answers), self.spec)
        self._change()
        self._stamp_s, self._instruction = 1000.0, "a"
        self._in_a_row = 0
        self._fresh_s = math.nan

    def run(self, count: int) -> None:
        """Take so many steps.

        Raises:
            AssertionError: A promise was broken; names it.
        """
        for _ in range(count):
            self._disturb()
            before = self.stepper.state
            image = self.rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) if self.rng.random() < 0.2 else _GREY
            positions = {name: float(self.rng.normal()) for name in self.spec.names if self.rng.random() < 0.5}
            observation = Observation({"image": image}, self._instruction, self._stamp_s, 0.0, positions)
            self.steps += 1
            self.answers.sound = True
            try:
                result = self.stepper.step(observation, self.settings)
            except ActionError:
                self.refused += 1
                assert not self.answers.sound or self._needs_position(before), "a sound action was refused"
                assert self.stepper.state is before, "a refused step changed the state"
                continue
            assert self.answers.sound, "nonsense was commanded"
            self._check(result, before)

    def _needs_position(self, before: StepperState) -> bool:
        """Whether an absolute dimension may lack what a step limit or a scale counts from."""
        control = self.settings.control
        at_rest = before.command is None or before.resting or control.dry_run is not before.dry_run
        if ActionKind.ABSOLUTE not in self.spec.kinds:
            return before.command is None and bool(self.settings.limits.max_step)
        return bool(at_rest and self.settings.limits.max_step) or control.speed_scale < 1.0 or control.ramp_s > 0.0

    def _check(self, result: StepResult, before: StepperState) -> None:
        """Hold one result to what docs/safety.md and docs/gate.md promise."""
        command, limits, gate = result.command, self.settings.limits, result.decision.settings
        self.reasons[str(result.decision.reason)] += 1
        self.clamped += bool(result.clamped.any())
        assert np.isfinite(command).all(), "a command is not finite"
        assert command.ndim == 2 and command.shape[1] == self.spec.size, "a command has another shape"
        if limits.lower:
            self._check_range(result, before)
        if limits.max_step:
            self._check_steps(command, before, result.speed_scale)
        control = self.settings.control
        assert 0.0 <= result.speed_scale <= control.speed_scale, "faster than control.speed_scale"
        if result.speed_scale == 0.0:
            motion = [kind in (ActionKind.DELTA, ActionKind.VELOCITY) for kind in self.spec.kinds]
            assert not command[:, motion].any(), "moves at a scale of 0"
        if result.fresh:
            self._in_a_row, self._fresh_s = 0, self._stamp_s
            return
        assert result.observation.instruction == self._fresh_instruction(), "reused for another instruction"
        if gate.mode == "guarded":
            assert self._stamp_s - self._fresh_s <= gate.max_age_s + _SLACK, "reused what is older than gate.max_age_s"
        size, passed = len(result.inference.action), elapsed_rows(self._stamp_s - self._fresh_s, self.spec.dt_s)
        assert size == 1 or passed < size, "reused a chunk beyond its end"
        if not result.reused:
            assert passed < replan_row(size, gate.replan_after), "followed a chunk where the model was due"
            return
        self.reused += 1
        self._in_a_row += 1
        assert gate.mode != "off", "reused with the gate off"
        skipped = self._in_a_row if size == 1 else passed // replan_row(size, gate.replan_after)
        assert skipped <= gate.max_reuse, "reused more often than gate.max_reuse"

    def _check_range(self, result: StepResult, before: StepperState) -> None:
        """No value is outside limits.lower and upper; an absolute one that starts outside goes no further out."""
        lower, upper = np.array(self.settings.limits.lower), np.array(self.settings.limits.upper)
        rests = resting(self.spec, None, result.observation.positions)
        starts = [rests] if before.command is None else [rests, *before.command]
        absolute = np.array([kind is ActionKind.ABSOLUTE for kind in self.spec.kinds])
        low, high = np.fmin.reduce([lower, *starts]), np.fmax.reduce([upper, *starts])
        assert (result.command >= np.where(absolute, low, lower)).all(), "below limits.lower"
        assert (result.command <= np.where(absolute, high, upper)).all(), "above limits.upper"

    def _check_steps(self, command: np.ndarray, before: StepperState, scale: float) -> None:
        """From the command in force, and from row to row, it changes by limits.max_step at most."""
        limits = self.settings.limits
        rows = command
        followed = before.dry_run is self.settings.control.dry_run  # nothing of a dry run was
        if before.command is not None and not before.resting and followed:
            held = in_force(before.command, self._stamp_s - before.command_s, self.spec.dt_s)
            held = slowed(held, before.speed_scale, scale, self.spec)  # a scale that falls holds at once
            if limits.lower:  # the range of what is no position has the last word, also over where the step counts from
                moved = np.array([kind is not ActionKind.ABSOLUTE for kind in self.spec.kinds])
                held = np.where(moved, np.clip(held, limits.lower, limits.upper), held)
            rows = np.vstack([held, command])
        slack = _SLACK * np.maximum(np.abs(rows).max(axis=0), 1.0)
        assert (np.abs(np.diff(rows, axis=0)) <= limits.max_step + slack).all(), "faster than limits.max_step"

    def _fresh_instruction(self) -> str:
        last = self.stepper.state.memory.last
        assert last is not None, "reused without a fresh result"
        return last.source.instruction

    def _disturb(self) -> None:
        """What may happen between two steps."""
        rng = self.rng
        self._stamp_s += float(rng.choice([0.03, 0.1, 0.1, 0.1, 0.5]))
        if rng.random() < _JUMP:
            self._stamp_s += float(rng.choice([-3600.0, -0.1, 0.0, 5.0, 3600.0]))
        if rng.random() < _TALK:
            self._instruction = str(rng.choice(["a", "b"]))
        if rng.random() < _RESET:
            self.stepper.reset()
        if rng.random() < _CHANGE:
            self._change()

    def _change(self) -> None:
        """Draw thresholds and limits."""
        rng, size = self.rng, self.spec.size
        upper = rng.choice([0.01, 1.0, 100.0]) * rng.random(size)
        self.settings = self.settings.with_values(
            {
                "gate.mode": str(rng.choice(["off", "paper", "guarded", "guarded"])),
                "gate.delta": float(rng.random()),
                "gate.max_angle_deg": float(rng.choice([5.0, 30.0, 180.0])),
                "gate.max_reuse": int(rng.integers(0, 6)),
                "gate.fresh_between": int(rng.integers(1, 4)),
                "gate.calibration": str(rng.choice(["off", "online"])),
                "gate.max_age_s": float(rng.choice([0.0, 0.2, 1.0])),
                "gate.scene_patches": int(rng.integers(0, 4)),
                "gate.gripper_margin": float(rng.choice([0.0, 0.2])),
                "control.dry_run": bool(rng.random() < 0.1),
                "control.speed_scale": float(rng.choice([1.0, 1.0, 0.5, 0.0])),
                "control.ramp_s": float(rng.choice([0.0, 0.0, 2.0])),
                "pruning.method": str(rng.choice(["ics", "ics", "none"])),
                "pruning.keep_ratio": float(rng.choice([0.25, 0.625, 1.0])),
                "limits.lower": tuple(-upper) if (bounded := rng.random() < 0.7) else (),
                "limits.upper": tuple(upper) if bounded else (),
                "limits.max_step": tuple(rng.random(size)) if rng.random() < 0.5 else (),
            }
        )


_KINDS = ("delta", "velocity", "absolute", "gripper")
_GREY = np.full((32, 32, 3), 100, dtype=np.uint8)


def fuzz(steps: int, seed: int) -> dict[str, object]:
    """Take at least so many steps, in runs with seeds from `seed` on; returns what they were.

    Raises:
        AssertionError: A promise was broken; its text has the seed.
    """
    total: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    while total["steps"] < steps:
        run = Fuzz(seed + total["runs"])
        try:
            run.run(_RUN)
        except Exception as error:
            raise AssertionError(f"seed {run.seed}, step {run.steps}: {type(error).__name__}: {error}") from error
        reasons.update(run.reasons)
        total.update(runs=1, steps=run.steps, refused=run.refused, reused=run.reused, clamped=run.clamped)
    return {**total, "reasons": dict(reasons.most_common())}


def main() -> None:
    """Run, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the first run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was seen")
    args = parser.parse_args()
    started_s = time.monotonic()
    row = fuzz(args.steps, args.seed)
    print(f"seeds from {args.seed}: {row}; {time.monotonic() - started_s:.0f} s")
    if args.json:
        write_results(
            args.json, {"command": f"python test/control/fuzz_steps.py --steps {args.steps} --seed {args.seed}"}, [row]
        )


if __name__ == "__main__":
    main()
