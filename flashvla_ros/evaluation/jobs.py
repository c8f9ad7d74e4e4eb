"""One episode as a piece of work for any process, and what is kept of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import flashvla_ros
from flashvla_ros.control.stepper import Stepper, StepResult
from flashvla_ros.core.flops import ModelSize
from flashvla_ros.core.settings import ModelSettings, Settings
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.rollout import Outcome, roll_out

# Groups of parameters that reach no episode without ROS.
_IGNORED = ("node.", "camera.")
_TICKS_IN_A_SECOND = 100_000  # latencies are kept in steps of 10 µs


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode.

    Attributes:
        settings: Complete, with the checkpoint's folder.
        plan: What is asked, and what disturbs it.
        free_running: Let the robot go on while the model thinks.
    """

    settings: Settings
    plan: EpisodePlan
    free_running: bool = False

    def key(self, checkpoint: str) -> str:
        """Return 20 hexadecimal digits that two episodes share only if they are the same one.

        Args:
            checkpoint: Fingerprint of the checkpoint's files; the folder's name does not count.
        """
        values = {name: value for name, value in self.settings.values().items() if not name.startswith(_IGNORED)}
        plan = {**dataclasses.asdict(self.plan), "task": self.plan.task.name}
        content = [flashvla_ros.__version__, values | {"model.checkpoint": checkpoint}, plan, self.free_running]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of an episode; a line of JSON.

    Attributes:
        success, steps, reused, clamped, kept_ratio, reasons, change_step, reaction_steps: As in the outcome.
        visual_flops: Visual-token FLOPs of all control steps, as a multiple of one dense prefill's.
        flops: FLOPs of all control steps, as a multiple of one dense inference's.
        fresh_ticks: Latency of each control step that ran the model, in steps of 10 µs.
        reuse_ticks: Latency of each control step that did not.
    """

    success: bool
    steps: int
    reused: int
    clamped: int
    kept_ratio: float
    reasons: Mapping[str, int]
    change_step: int | None
    reaction_steps: int | None
    visual_flops: float
    flops: float
    fresh_ticks: tuple[int, ...]
    reuse_ticks: tuple[int, ...]

    @property
    def control_steps(self) -> int:
        """Control steps, reused ones among them."""
        return len(self.fresh_ticks) + len(self.reuse_ticks)

    @property
    def latencies_ms(self) -> list[float]:
        """Latency of every control step, in no particular order."""
        return [1e3 * ticks / _TICKS_IN_A_SECOND for ticks in (*self.fresh_ticks, *self.reuse_ticks)]

    @property
    def fresh_latencies_ms(self) -> list[float]:
        """Latency of the control steps that ran the model."""
        return [1e3 * ticks / _TICKS_IN_A_SECOND for ticks in self.fresh_ticks]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Read what ``dataclasses.asdict`` and JSON made of a record; another form raises TypeError."""
        ticks = {name: tuple(values[name]) for name in ("fresh_ticks", "reuse_ticks") if name in values}
        return cls(**{**values, **ticks})


def run_job(job: Job) -> Record:
    """Run one episode in this process, whose policies and worlds serve all its episodes."""
    cost = _Cost(_policy(job.settings.model), job.settings)
    return _record(play(job, cost.add), cost)


def play(job: Job, on_step: Callable[[StepResult], None]) -> Outcome:
    """Run one episode in this process and show every control step to `on_step`."""
    policy = _policy(job.settings.model)
    stepper = Stepper(policy, ActionSpec.of(job.settings.action))
    # Images of the size that the policy sees, so that none is resized on the way.
    world = _world(policy.model.config.towers[0].image_size)
    return roll_out(world, stepper, job.plan, job.settings, on_step, free_running=job.free_running)


def close_worlds() -> None:
    """Free the OpenGL contexts of this process: left to the interpreter's end they complain."""
    for world in _WORLDS.values():
        world.close()
    _WORLDS.clear()


_WORLDS: dict[int, Any] = {}  # by size of the image


@functools.cache
def _policy(settings: ModelSettings) -> Any:
    from flashvla_ros.vla.arch.table import load  # in the workers only: a parent that fans out needs no torch

    policy = load(settings)
    policy.warm_up(Settings().pruning)
    return policy


def _world(size: int) -> Any:
    from flashvla_ros.sim.world import World

    if size not in _WORLDS:
        _WORLDS[size] = World(image_size=size)
    return _WORLDS[size]


_OF_OUTCOME = {field.name for field in dataclasses.fields(Outcome)} & {f.name for f in dataclasses.fields(Record)}


class _Cost:
    """Counts what an episode's control steps cost, as multiples of the dense model's."""

    def __init__(self, policy: Any, settings: Settings) -> None:
        from flashvla_ros.vla.sizes import model_size

        self._policy, self._pruning = policy, settings.pruning
        self._size: ModelSize = model_size(policy.model.config)
        self.visual = self.total = 0.0
        self.fresh: list[bool] = []

    def add(self, result: StepResult) -> None:
        """Count one control step; a reused one costs nothing."""
        self.fresh.append(result.fresh)
        if not result.fresh:
            return
        run, tokens, layer = result.inference, self._size.visual_tokens, self._pruning.layer
        kept = tokens if run.kept is None or not self._pruning.drop else len(run.kept)
        text, actions = len(self._policy.prompts(result.observation.instruction)), run.action.size
        self.visual += self._size.decoder.visual_share(tokens, kept, layer)
        drafted, settled = 0, 1
        if run.draft_tokens:  # the last of them is checked without being run
            drafted, settled = run.draft_tokens - 1, min(run.draft_accepted + 1, run.draft_tokens)
        spent = self._size.inference_flops(kept, layer, text, actions, drafted, settled)
        self.total += spent / self._size.inference_flops(tokens, layer, text, actions)


def _record(outcome: Outcome, cost: _Cost) -> Record:
    ticks = [round(seconds * _TICKS_IN_A_SECOND) for seconds in outcome.latencies_s]
    return Record(
        **{name: getattr(outcome, name) for name in _OF_OUTCOME},
        visual_flops=cost.visual,
        flops=cost.total,
        fresh_ticks=tuple(tick for tick, fresh in zip(ticks, cost.fresh, strict=True) if fresh),
        reuse_ticks=tuple(tick for tick, fresh in zip(ticks, cost.fresh, strict=True) if not fresh),
    )
