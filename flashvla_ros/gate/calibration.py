"""Thresholds that keep themselves right: how permissive the gate may be, and what may be claimed of it.

A reuse is *off* where the model would have said something else, by more than ``calibration.tolerance``. On a fresh step
that is known for free. A step that would be reused is audited with probability p: the model runs, its action is
commanded, and the step counts as fresh.

**Rule A** (conformal decision theory, arXiv 2310.05921, with inverse-probability weights as in 2503.10345) moves the
permissiveness λ by η (ε - loss / p), where an audited step was off, and up by η ε otherwise. λ ≤ 0 never reuses, so λ
stays above -η / p, and summing up gives E[mean loss] ≤ ε + (λ₁ / η + 1 / p) / T over T steps, whatever the world does.
λ rises only on steps of a moving robot that it decided itself, else an idle hour would be spent on the next motion.

**Rule B** (betting, Waudby-Smith & Ramdas 2024) says which λ of a grid have a risk below ε: each bets against its own
losses, and is certified once its wealth reaches 1 / (1 - confidence) and all smaller ones are. A second bet, on the
opposite, takes the claim back at the same wealth: a false alarm costs no more than the steps that certify again. The
claim starts again with another instruction, pruning or guard, or other ``calibration.*``; λ is kept. Where the score
learns, the claim is about the score as it has moved.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from flashvla_ros.core.chunk import elapsed_rows
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import CalibrationSettings, Settings
from flashvla_ros.core.types import ActionKind, FloatArray
from flashvla_ros.gate.decision import FreshComparison, GateDecision, GateMeasurements, judge, report, skipped_runs
from flashvla_ros.gate.memory import FreshResult, GateMemory
from flashvla_ros.gate.score import (
    NEVER,
    UNLEARNT,
    angle_decides,
    cap_of,
    most_permissive,
    need,
    predicted_risk,
    scored,
    signs,
    thresholds,
    updated,
)

LEVELS: FloatArray = np.arange(1, 21) / 20.0  # the grid of λ that rule B judges, safest first
STEP = 0.05  # η / p: one audit that was off throws λ back by this much
_NONE: FloatArray = np.zeros(len(LEVELS))


@dataclasses.dataclass(frozen=True)
class Trial:
    """What λ makes of one step, before the model is asked.

    Attributes:
        need: The least λ that would reuse, :data:`.score.NEVER` where none would: a guard decided, not λ.
        reason: Why the step is reused, or why the model runs.
        counted: λ decided, and the robot moves: λ may rise.
        candidate: The fresh result that a reuse repeats, where λ decided.
        row: Its row that would be in force.
        signs: What the score has judged by, where one decided.
    """

    need: float
    reason: Reason
    counted: bool
    candidate: FreshResult | None = None
    row: int = 0
    signs: FloatArray | None = None

    @property
    def would_reuse(self) -> bool:
        """Whether the step is reused, or would be without its audit."""
        return self.reason in (Reason.REUSE, Reason.AUDIT)


@dataclasses.dataclass(frozen=True, eq=False)
class CalibrationState:
    """What calibration carries from one step to the next; of constant size, never changed in place.

    Attributes:
        permissiveness: λ, from just below 0 to 1.
        coins: Coins that were tossed so far.
        steps: Steps since the claim began at which λ could rise.
        chances: Steps since then that were reused, or would have been without their audit.
        audits: Those of them that were audited.
        off: Audited ones whose reuse would have been off.
        certified: Number of :data:`LEVELS` that are certified, from the safest on.
        wealth: [G] logarithm of what each level has won on being safe.
        alarm: [G] logarithm of what it has won on not being safe, since it was certified.
        learnt: What the score has learnt, see :func:`.score.updated`; outlasts the claim, but not its score.
        claim: What the claim is about: instruction and settings.
    """

    permissiveness: float = 0.0
    coins: int = 0
    steps: int = 0
    chances: int = 0
    audits: int = 0
    off: int = 0
    certified: int = 0
    wealth: FloatArray = dataclasses.field(default_factory=_NONE.copy)
    alarm: FloatArray = dataclasses.field(default_factory=_NONE.copy)
    learnt: FloatArray = dataclasses.field(default_factory=UNLEARNT.copy)
    claim: str = ""

    @property
    def certified_level(self) -> float:
        """The greatest λ that is certified; 0 where none is."""
        return float(LEVELS[self.certified - 1]) if self.certified else 0.0

    @property
    def off_per_reuse(self) -> tuple[float, float, float]:
        """Share of the reuses that are off, by the audits, and its 95 % Wilson interval; NaN before the first."""
        return _wilson(self.off, self.audits)

    @property
    def off_per_step(self) -> tuple[float, float, float]:
        """The same as a share of the steps at which λ could rise."""
        share = self.chances / self.steps if self.steps else math.nan
        value, low, high = (min(share * rate, 1.0) for rate in self.off_per_reuse)  # an idle step may be a chance
        return value, low, high

    def packed(self) -> FloatArray:
        """Return everything but the claim as one array, for a message; :meth:`unpacked` is the way back."""
        scalars = [getattr(self, name) for name in _SCALARS]
        return np.concatenate([scalars, self.wealth, self.alarm, self.learnt.ravel()])

    @classmethod
    def unpacked(cls, values: Sequence[float], claim: str) -> CalibrationState:
        """Return what :meth:`packed` packed.

        Raises:
            ValueError: It is of another size, not finite, or counts what cannot be.
        """
        array = np.asarray(values, dtype=np.float64)
        parts = np.cumsum([len(_SCALARS), len(LEVELS), len(LEVELS), UNLEARNT.size])
        if array.shape != (parts[-1],) or not np.isfinite(array).all():
            raise ValueError("not a state of this version's calibration")
        scalars, wealth, alarm, learnt = np.split(array, parts[:-1])
        counts = dict(zip(_SCALARS[1:], map(int, scalars[1:]), strict=True))
        learnt = learnt.reshape(UNLEARNT.shape)
        state = cls(float(scalars[0]), **counts, wealth=wealth, alarm=alarm, learnt=learnt, claim=claim)
        in_order = 0 <= state.off <= state.audits <= state.chances <= state.coins
        in_range = -STEP <= state.permissiveness <= 1.0 and 0 <= state.certified <= len(LEVELS)
        if not in_order or not in_range or state.steps < 0:
            raise ValueError("its counts contradict each other")
        return state


_SCALARS = ("permissiveness", "coins", "steps", "chances", "audits", "off", "certified")


def entering(state: CalibrationState, instruction: str, settings: Settings) -> CalibrationState:
    """Return the state as a step begins: the claim starts again where it was about something else."""
    claim = claim_of(instruction, settings)
    if claim == state.claim:
        return state
    taught = state.learnt if _learner(claim) == _learner(state.claim) else UNLEARNT
    return CalibrationState(state.permissiveness, state.coins, learnt=taught, claim=claim)


@functools.lru_cache(maxsize=16)
def claim_of(instruction: str, settings: Settings) -> str:
    """Return what is claimed something of, in words that differ where it does; what learns comes last."""
    allowed = settings.calibration
    guards = most_permissive(settings.gate, allowed)  # without what λ moves
    rule = f"{dataclasses.replace(allowed, state_file='')}\n{settings.pruning}\n{guards}"
    gripper = f"{settings.gate.gripper_still} {settings.gate.gripper_middle}"
    return f"{instruction}\n{rule}\nscore {allowed.score} at {allowed.tolerance} {gripper}"


def _learner(claim: str) -> str:
    """The line of a claim that says which score learns, and what counts as off."""
    return claim.rsplit("\n", 1)[-1]


def try_reuse(
    memory: GateMemory, measured: GateMeasurements, state: CalibrationState, settings: Settings, dt_s: float
) -> tuple[Trial, GateDecision]:
    """Decide one step at the permissiveness of `state`.

    The guards of the gate are never relaxed: λ decides among steps that they allow. The rows of a chunk are `dt_s`
    apart.
    """
    allowed, comparison = settings.calibration, measured.comparison
    in_force = thresholds(state.permissiveness, settings.gate, allowed)
    reason = judge(memory, measured, most_permissive(settings.gate, allowed))
    if reason is not Reason.REUSE:
        return Trial(NEVER, reason, counted=False), report(memory, measured, reason, in_force)
    skipped = skipped_runs(memory, measured, settings.gate)
    found = signs(memory, measured) if scored(allowed) else None
    if found is None:
        least = need(comparison, skipped, settings)
    else:
        least = math.sqrt(predicted_risk(found, allowed, state.learnt))
    reason = _verdict(least, skipped, comparison, state, settings)
    still = settings.control.dry_run or settings.control.speed_scale == 0.0 or _stands(memory, comparison, settings)
    row = min(elapsed_rows(measured.age_s, dt_s), len(memory.last.motion) - 1) if memory.last else 0
    return Trial(least, reason, not still, memory.last, row, found), report(memory, measured, reason, in_force)


def _stands(memory: GateMemory, comparison: FreshComparison, settings: Settings) -> bool:
    """Whether the robot stands still: a target that stays where it is is as large as one that moves."""
    last, previous = memory.last, memory.previous
    if last is None or previous is None or ActionKind.ABSOLUTE not in settings.action.kinds:
        return comparison.either_small
    spread = np.ptp(np.concatenate([previous.motion, last.motion]), axis=0)
    return bool(np.linalg.norm(spread) <= settings.gate.still_difference)


def _verdict(
    least: float, skipped: int, comparison: FreshComparison, state: CalibrationState, settings: Settings
) -> Reason:
    """Reuse, audit, or the threshold that forbids it."""
    allowed = settings.calibration
    if state.permissiveness <= 0.0:
        return Reason.LEARNING
    if least <= state.permissiveness:
        return Reason.AUDIT if coin(state.coins) < allowed.audit_rate else Reason.REUSE
    if scored(allowed):
        return Reason.RISK
    if skipped >= cap_of(state.permissiveness, allowed):
        return Reason.MAX_REUSE
    return Reason.ANGLE if angle_decides(comparison, settings) else Reason.OVERLAP


def is_off(trial: Trial, fresh: FreshResult, settings: Settings) -> bool:
    """Say whether the action that a reuse would have repeated is another one than the model's own.

    Both are compared before limits and speed, in normalised units, at the instant of the step.
    """
    old, tolerance = trial.candidate, settings.calibration.tolerance
    if old is None or old.motion.shape[1:] != fresh.motion.shape[1:]:
        return False
    if old.motion.shape[1] and np.abs(fresh.motion[0] - old.motion[trial.row]).max() > tolerance:
        return True
    before, after = old.gripper[trial.row], fresh.gripper[0]
    change = np.abs(after - before)
    middle, still = settings.gate.gripper_middle, settings.gate.gripper_still
    flips = (np.sign(after - middle) != np.sign(before - middle)) & (change > still)
    return bool((flips | (change > max(tolerance, still))).any())


def after_step(
    state: CalibrationState, trial: Trial, off: bool | None, allowed: CalibrationSettings
) -> CalibrationState:
    """Return the state after a step.

    Args:
        state: Before it.
        trial: What was decided.
        off: Whether the reuse was off, or would have been; None where the model was not run.
        allowed: The settings of calibration.
    """
    if trial.need == NEVER:
        return state
    risk, rate = allowed.risk, allowed.audit_rate
    audited, chance = trial.reason is Reason.AUDIT, trial.would_reuse
    gain = risk if trial.counted else 0.0  # an idle robot earns nothing
    loss = float(bool(off)) / rate if audited else 0.0
    weight = 1.0 / rate if chance else 1.0  # a fresh step is always seen
    losses = np.where(trial.need <= LEVELS, weight * bool(off), 0.0).astype(np.float64)
    certified, wealth, alarm = _claimed(state, losses, gain, allowed)
    learnt = state.learnt
    if trial.counted and trial.signs is not None and off is not None and allowed.learning > 0.0:
        learnt = updated(learnt, trial.signs, trial.need**2, off, weight, allowed.learning)
    return CalibrationState(
        permissiveness=min(1.0, state.permissiveness + STEP * rate * (gain - loss)),
        coins=state.coins + chance,
        steps=state.steps + trial.counted,
        chances=state.chances + chance,
        audits=state.audits + audited,
        off=state.off + (audited and bool(off)),
        certified=certified,
        wealth=wealth,
        alarm=alarm,
        learnt=learnt,
        claim=state.claim,
    )


def _claimed(
    state: CalibrationState, losses: FloatArray, gain: float, allowed: CalibrationSettings
) -> tuple[int, FloatArray, FloatArray]:
    """Bet once more for every level, and certify or revoke: the levels certified, wealth and alarm."""
    bet = 0.5 * allowed.audit_rate  # at every step: one that knew the need would bet on steps that no level reuses
    wealth = state.wealth + np.log1p(bet * (gain - losses))
    # Wealth on the opposite never falls below 1, so that a long quiet time does not hide a shift.
    alarm = np.maximum(state.alarm, 0.0) + np.log1p(bet * (losses - allowed.risk))
    certified, enough = state.certified, -math.log1p(-allowed.confidence)
    if certified and alarm[:certified].max() >= enough:
        certified = int(np.argmax(alarm[:certified] >= enough))
        wealth[certified:] = np.minimum(wealth[certified:], 0.0)  # what others have lost stays lost
    while certified < len(LEVELS) and wealth[certified] >= enough:
        alarm[certified] = 0.0
        certified += 1
    return certified, wealth, alarm


def coin(number: int) -> float:
    """Return the toss of a number, in [0, 1): SplitMix64, which sees no frame and no clock and repeats."""
    mask = 2**64 - 1
    value = (number + 1) * 0x9E3779B97F4A7C15 & mask
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ value >> 27) * 0x94D049BB133111EB & mask
    return ((value ^ value >> 31) >> 11) / 2.0**53


def _wilson(hits: int, trials: int) -> tuple[float, float, float]:
    """Share and 95 % score interval (Wilson 1927)."""
    if not trials:
        return math.nan, math.nan, math.nan
    z, share = 1.959964, hits / trials
    scale = 1.0 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1.0 - share) / trials + z * z / (4.0 * trials * trials))
    return share, max(middle - half, 0.0), min(middle + half, 1.0)
