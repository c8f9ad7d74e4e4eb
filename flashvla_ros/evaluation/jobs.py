"""One episode as a piece of work for any process, and what is kept of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import flashvla_ros
from flashvla_ros.control.step_result import StepResult
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.chunk import replan_row
from flashvla_ros.core.flops import ModelSize
from flashvla_ros.core.policy import Policy
from flashvla_ros.core.settings import ModelSettings, Settings
from flashvla_ros.core.types import ActionSpec, FloatArray
from flashvla_ros.evaluation.open_loop import OPEN_LOOP, TapePolicy, UnseenWorld
from flashvla_ros.sim.episode import EpisodePlan
from flashvla_ros.sim.libero.protocol import is_libero
from flashvla_ros.sim.perturbation import NONE
from flashvla_ros.sim.rollout import Outcome, roll_out

# Groups of parameters that reach no episode without ROS.
_IGNORED = ("node.", "camera.")
_TICKS_IN_A_SECOND = 100_000  # latencies are kept in steps of 10 µs


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode."""

    settings: Settings  # complete, with the checkpoint's folder
    plan: EpisodePlan
    free_running: bool = False  # the robot goes on while the model thinks
    render: str = "official"  # how LIBERO's images are made
    open_loop: bool = False  # an episode of the model from another start is played again, without looking

    def key(self, checkpoint: str) -> str:
        """Return 20 hexadecimal digits that two episodes share only if they are the same one.

        Args:
            checkpoint: Fingerprint of the checkpoint's files; the folder's name does not count.
        """
        values = {name: value for name, value in self.settings.values().items() if not name.startswith(_IGNORED)}
        plan = {**dataclasses.asdict(self.plan), "task": self.plan.task.name}
        content = [flashvla_ros.__version__, values | {"model.checkpoint": checkpoint}, plan, self.free_running]
        content += [self.render] * is_libero(self.plan.task.name) + [OPEN_LOOP] * self.open_loop
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of an episode; a line of JSON.

    Attributes:
        success, steps, reused, clamped, kept_ratio, reasons, change_step, reaction_steps: As in the outcome.
        visual_flops: Visual-token FLOPs of all control steps, as a multiple of a dense step's.
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
    cost = Cost(None if job.open_loop else policy_of(job.settings.model), job.settings)
    return record_of(play(job, cost.add), cost)


def play(
    job: Job, on_step: Callable[[StepResult], None], rule: Policy | None = None, *, shown: bool = False
) -> Outcome:
    """Run one episode in this process and show every control step to `on_step`.

    `rule` plays in the model's place. Where an episode without looking is `shown`, its steps have their images all the
    same.
    """
    policy: Any = policy_of(job.settings.model)
    config = policy.model.config
    # Images of the size that the policy sees, so that none is resized on the way.
    images = config.towers[0].image_size, job.render, config.num_images_in_input
    if (key := (is_libero(job.plan.task.name), *images)) not in _WORLDS:
        from flashvla_ros.sim.world import make_world  # in the workers only, which need MuJoCo

        _WORLDS[key] = make_world(job.plan.task.name, *images)
    world = _WORLDS[key]
    if job.open_loop:
        tape = _tape(dataclasses.replace(job, open_loop=False, free_running=False, plan=_other_start(job.plan)))
        policy, world = TapePolicy(tape, job.settings.action.dt_s), world if shown else UnseenWorld(world)
    stepper = Stepper(rule or policy, ActionSpec.of(job.settings.action))
    return roll_out(world, stepper, job.plan, job.settings, on_step, free_running=job.free_running)


def close_worlds() -> None:
    """Free the OpenGL contexts of this process: left to the interpreter's end they complain."""
    for world in _WORLDS.values():
        world.close()
    _WORLDS.clear()


_WORLDS: dict[tuple[Any, ...], Any] = {}  # by what they show
_FIRST_TAPE = 2 * 10**9  # seed of the first start for a tape; no evaluation and no training has it
_TAPES = 2  # starts that are tried until one ends in success; a failed one takes three times as long


def _other_start(plan: EpisodePlan, number: int = 0) -> EpisodePlan:
    """Every tick of a tape has a command: no image is lost, and the robot waits for each."""
    return dataclasses.replace(plan, seed=_FIRST_TAPE + number, perturbation=NONE)


@functools.lru_cache(maxsize=16)
def _tape(job: Job) -> tuple[FloatArray, ...]:
    """Return the commands of the first start that the model solves, of the last one that is tried where it solves none.

    Each worker plays it once for all its episodes; the same job gives the same tape.
    """
    commands: list[FloatArray] = []
    for number in range(_TAPES):
        commands.clear()
        started = dataclasses.replace(job, plan=_other_start(job.plan, number))
        if play(started, lambda result: commands.append(result.command[0].copy())).success:
            break
    return tuple(commands)


@functools.cache
def policy_of(settings: ModelSettings) -> Any:
    """Return the policy of a checkpoint, warmed up, one for all that ask."""
    from flashvla_ros.vla.arch.table import load  # in the workers only: a parent that fans out needs no torch

    policy = load(settings)
    policy.warm_up(Settings().pruning)
    return policy


_OF_OUTCOME = {field.name for field in dataclasses.fields(Outcome)} & {f.name for f in dataclasses.fields(Record)}


class Cost:
    """Counts what an episode's control steps cost, as multiples of the dense model's; without a model, nothing."""

    def __init__(self, policy: Any, settings: Settings) -> None:
        from flashvla_ros.vla.config import model_size

        self._policy, self._pruning, self._gate = policy, settings.pruning, settings.gate
        self._size: ModelSize | None = model_size(policy.model.config) if policy is not None else None
        self.visual = self.total = 0.0
        self.fresh: list[bool] = []

    def add(self, result: StepResult) -> None:
        """Count one control step; a reused one costs nothing, and one run of a dense chunk counts for all its steps."""
        self.fresh.append(result.fresh)
        if not result.fresh or self._size is None:
            return
        run, tokens, layer = result.inference, self._size.visual_tokens, self._pruning.layer
        kept = tokens if run.kept is None or not self._pruning.drop else len(run.kept)
        text = len(self._policy.prompts(result.observation.instruction)) + self._policy.layout.rows
        actions = max(self._policy.decoded, 1)
        spread = replan_row(len(run.action), self._gate.replan_after)
        self.visual += spread * self._size.decoder.visual_share(tokens, kept, layer)
        drafted, settled = 0, 1
        if run.draft_tokens:  # the last of them is checked without being run
            drafted, settled = run.draft_tokens - 1, min(run.draft_accepted + 1, run.draft_tokens)
        spent = self._size.inference_flops(kept, layer, text, actions, drafted, settled)
        self.total += spread * spent / self._size.inference_flops(tokens, layer, text, actions)


def record_of(outcome: Outcome, cost: Cost) -> Record:
    """Return what is kept of an episode."""
    ticks = [round(seconds * _TICKS_IN_A_SECOND) for seconds in outcome.latencies_s]
    return Record(
        **{name: getattr(outcome, name) for name in _OF_OUTCOME},
        visual_flops=cost.visual,
        flops=cost.total,
        fresh_ticks=tuple(tick for tick, fresh in zip(ticks, cost.fresh, strict=True) if fresh),
        reuse_ticks=tuple(tick for tick, fresh in zip(ticks, cost.fresh, strict=True) if not fresh),
    )
