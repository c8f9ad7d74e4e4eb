"""What other thresholds would have done: the gate's own code over the features of a recording, many settings at once.

Settings that have decided alike so far share one memory, which is measured once a frame for all of them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.bags.features import Features
from flashvla_ros.core.chunk import replan_row
from flashvla_ros.core.reasons import WITHOUT_MODEL, Reason
from flashvla_ros.core.settings import GateSettings, Settings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.calibration import CalibrationState, after_step, entering, is_off, try_reuse
from flashvla_ros.gate.decision import FreshComparison, GateDecision, decide, judge, measure
from flashvla_ros.gate.memory import FreshResult, GateMemory
from flashvla_ros.gate.scene import SceneChange, SceneMotion

Sources = NDArray[np.int32]  # [S, F] frame whose action is in force at each frame: itself where the model is run


def grid(
    base: GateSettings, deltas: Sequence[float], angles: Sequence[float], caps: Sequence[int]
) -> list[GateSettings]:
    """Return every combination of δ, ε₁ and reuse cap; everything else is as in `base`."""
    return [
        dataclasses.replace(base, delta=delta, max_angle_deg=angle, max_reuse=cap)
        for delta, angle, cap in itertools.product(deltas, angles, caps)
    ]


class _Group(NamedTuple):
    """Settings that have one memory."""

    memory: GateMemory
    members: list[int]


def sweep(features: Features, settings: Sequence[GateSettings]) -> Sources:
    """Return what each of the settings, which may differ in δ, ε₁ and reuse cap alone, does at each frame."""
    base = settings[0]
    sources = np.empty((len(settings), len(features)), dtype=np.int32)
    groups = [_Group(GateMemory(), list(range(len(settings))))]
    # Every comparison of two results or two frames is made once for all groups.
    compared = functools.lru_cache(maxsize=1024)(functools.partial(FreshComparison.of, settings=base))
    for index, current in enumerate(features.inputs):
        cause = features.resets[index]
        if cause is not None:
            groups = [_Group(group.memory.forgotten(cause), group.members) for group in groups]
        fresh = features.fresh(index)
        scenes: dict[FreshResult | None, SceneChange] = {}
        # What breaks a run lies in the frames alone, so the motion after a frame is the same for every group.
        motion: SceneMotion | None = None
        merged: dict[tuple[object, ...], _Group] = {}
        for memory, members in groups:
            last, previous = memory.last, memory.previous
            comparison = compared(previous, last) if previous and last else None
            measured = measure(memory, current, base, comparison, scenes.get(last))
            scenes[last] = measured.scene
            verdicts = [judge(memory, measured, settings[member]) for member in members]
            running = [member for member, reason in zip(members, verdicts, strict=True) if reason not in WITHOUT_MODEL]
            if running:
                sources[running, index] = index
                after = memory.after_fresh(fresh, base, motion)
                motion = after.motion
                _merge(merged, after, running, base)
            for reason in WITHOUT_MODEL & set(verdicts):
                alike = [member for member, own in zip(members, verdicts, strict=True) if own is reason]
                sources[alike, index] = sources[alike, index - 1]
                after = memory.after_step_without_model(reason, current, motion)
                motion = after.motion
                _merge(merged, after, alike, base)
        groups = list(merged.values())
    return sources


def _merge(
    merged: dict[tuple[object, ...], _Group], memory: GateMemory, members: list[int], base: GateSettings
) -> None:
    """Add members to the group whose memory the gate cannot tell from theirs.

    Fresh steps since the last reuse beyond ``fresh_between`` are as good as none.
    """
    since = memory.fresh_since_reuse
    rested = since is None or since >= base.fresh_between
    key = (memory.last, memory.previous, memory.reused_in_a_row, None if rested else since)
    merged.setdefault(key, _Group(memory, [])).members.extend(members)


def timeline(features: Features, settings: GateSettings) -> list[GateDecision]:
    """Return every decision of one setting."""
    return list(_walk(features, settings, lambda index, memory: decide(memory, features.inputs[index], settings)))


def _walk(
    features: Features, settings: GateSettings, decided: Callable[[int, GateMemory], GateDecision]
) -> Iterator[GateDecision]:
    """Yield the decision at each frame; the memory follows them."""
    memory = GateMemory()
    for index, current in enumerate(features.inputs):
        cause = features.resets[index]
        if cause is not None:
            memory = memory.forgotten(cause)
        decision = decided(index, memory)
        yield decision
        if decision.reuse:
            memory = memory.after_step_without_model(decision.reason, current)
        else:
            memory = memory.after_fresh(features.fresh(index), settings)


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What ``gate.calibration: online`` did in recordings that followed each other.

    Attributes:
        risk: ``calibration.risk``.
        steps: Control steps.
        reused: Those that reused an action.
        audited: Those that were audited.
        off: Reused ones that were off, which only a dense pass can tell.
        state: What calibration carries on.
    """

    risk: float
    steps: int = 0
    reused: int = 0
    audited: int = 0
    off: int = 0
    state: CalibrationState = dataclasses.field(default_factory=CalibrationState)


def calibrate(before: Calibrated, features: Features, settings: Settings) -> Calibrated:
    """Return what calibration has done once it has gone through one more recording."""
    state, off = before.state, 0

    def decided(index: int, memory: GateMemory) -> GateDecision:
        nonlocal state, off
        current = features.inputs[index]
        fresh, state = features.fresh(index), entering(state, current.instruction, settings)
        measured = measure(memory, current, settings.gate)
        trial, decision = try_reuse(memory, measured, state, settings, features.spec.dt_s)
        wrong = trial.candidate is not None and is_off(trial, fresh, settings)
        state = after_step(state, trial, None if decision.reuse else wrong, settings.calibration)
        off += decision.reuse and wrong
        return decision

    counts = collections.Counter(decision.reason for decision in _walk(features, settings.gate, decided))
    return Calibrated(
        before.risk,
        before.steps + len(features),
        before.reused + counts[Reason.REUSE],
        before.audited + counts[Reason.AUDIT],
        before.off + off,
        state,
    )


def reused_frames(features: Features, sources: NDArray[np.int32], settings: GateSettings) -> NDArray[np.intp]:
    """Return the frames at which `settings` skipped a run of the model that was due; `sources` [F] are theirs."""
    frames = np.flatnonzero(sources != np.arange(len(sources)))
    size = features.actions.shape[1]
    if size == 1:
        return frames
    return frames[_elapsed(features, sources, frames) >= replan_row(size, settings.replan_after)]


def errors(features: Features, sources: NDArray[np.int32], frames: NDArray[np.intp]) -> FloatArray:
    """Return the error [R, D] of reused steps of one setting, normalised, per dimension.

    It is the distance from the row of the older chunk that the robot follows at that frame to what the dense model
    says for that very frame.

    Args:
        features: The recording.
        sources: [F] of that setting.
        frames: [R] its reused ones.
    """
    rows = np.minimum(_elapsed(features, sources, frames), features.actions.shape[1] - 1)
    return np.abs(features.actions[sources[frames], rows] - features.actions[frames, 0])


def _elapsed(features: Features, sources: NDArray[np.int32], frames: NDArray[np.intp]) -> NDArray[np.int64]:
    """Time steps from each frame's source to itself."""
    stamps = features.stamps_s
    return np.rint((stamps[frames] - stamps[sources[frames]]) / features.spec.dt_s).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Row:
    """What one setting did over all recordings; errors are NaN where nothing was reused.

    Attributes:
        settings: The setting.
        steps: Control steps.
        reused: Those that reused an action.
        error: p50, p95 and maximum of the largest error of any dimension.
        by_dimension: [3, D] the same of each dimension.
    """

    settings: GateSettings
    steps: int
    reused: int
    error: tuple[float, float, float]
    by_dimension: FloatArray

    @property
    def reuse_rate(self) -> float:
        """Share of the steps that reused an action."""
        return self.reused / self.steps


def evaluate(recordings: Sequence[tuple[Features, Sources]], settings: Sequence[GateSettings]) -> list[Row]:
    """Return one row per setting, the errors of all recordings pooled."""
    steps = sum(len(features) for features, _ in recordings)
    rows = []
    for number, setting in enumerate(settings):
        pooled = np.concatenate(
            [errors(of, sources[number], reused_frames(of, sources[number], setting)) for of, sources in recordings]
        )
        worst = pooled.max(axis=1, keepdims=True)
        p50, p95, greatest = _quantiles(worst)[:, 0].tolist()
        rows.append(Row(setting, steps, len(pooled), (p50, p95, greatest), _quantiles(pooled)))
    return rows


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that reuse anything: most reuse first, then least p95 error, then strictest thresholds."""

    def key(row: Row) -> tuple[float, ...]:
        gate = row.settings
        return -row.reused, row.error[1], -gate.delta, gate.max_angle_deg, gate.max_reuse

    return sorted((row for row in rows if row.reused), key=key)


def recommend(rows: Iterable[Row], max_error: float) -> Row | None:
    """Return the most aggressive row whose p95 error is within `max_error`; None where none is."""
    return next((row for row in ranked(rows) if row.error[1] <= max_error), None)


def frontier(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that no other beats in both reuse and p95 error, most reuse first."""
    kept: list[Row] = []
    for row in ranked(rows):
        if not kept or row.error[1] < kept[-1].error[1]:
            kept.append(row)
    return kept


def _quantiles(values: FloatArray) -> FloatArray:
    """Return p50, p95 and maximum [3, D] of the columns of [n, D], NaN where there are no rows."""
    if not len(values):
        return np.full((3, values.shape[1]), np.nan)
    return np.quantile(values, (0.5, 0.95, 1.0), axis=0)
