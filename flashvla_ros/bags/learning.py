"""A score for calibration, learnt from the dense pass: which signs come before an action that reuse would have missed.

At every frame the model has said what is right, so each earlier frame shows whether its action would have been off by
then. A ridge logistic regression over :data:`..gate.score.SIGNS` is small enough to be a parameter, and a step with it
repeats bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flashvla_ros.bags.features import Features
from flashvla_ros.core.chunk import elapsed_rows, replan_row
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.settings import Settings
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.calibration import Trial, is_off
from flashvla_ros.gate.decision import measure
from flashvla_ros.gate.memory import FreshResult, GateMemory
from flashvla_ros.gate.scene import SceneMotion
from flashvla_ros.gate.score import SIGNS, signs

AGES = 3  # reuses in a row that are learnt from
RIDGE, ROUNDS = 3.0, 12


class Examples(NamedTuple):
    """Reuses that could have been: their signs [E, S], whether each was off [E], and its number in a row [E]."""

    signs: FloatArray
    off: NDArray[np.bool_]
    ages: NDArray[np.int64]


def examples(features: Features, settings: Settings) -> Examples:
    """Return every reuse of up to :data:`AGES` in a row that a recording could have had, whatever a guard says of it.

    Args:
        features: The recording.
        settings: Those of gate and calibration say what counts as off.
    """
    found: list[tuple[FloatArray, bool, int]] = []
    run: list[FreshResult] = []
    motion, due = SceneMotion(), replan_row(features.actions.shape[1], settings.gate.replan_after)
    for index, current in enumerate(features.inputs):
        if features.resets[index] is not None:
            run, motion = [], SceneMotion()
        if run:
            memory = GateMemory(last=run[-1], seen_s=run[-1].source.stamp_s)
            if memory.interrupted_by(current, settings.gate.stale_gap_s) is not None:
                run = []
        fresh = features.fresh(index)
        for age in range(1, AGES + 1):
            back = -age - due + 1
            if len(run) <= -back:
                break
            last = run[back]
            memory = GateMemory(last=last, previous=run[back - 1], seen_s=run[-1].source.stamp_s, motion=motion)
            measured = measure(memory, current, settings.gate)
            row = elapsed_rows(measured.age_s, last.dt_s)
            if row < len(last.motion) or len(last.motion) == 1:  # a longer chunk has ended by then
                trial = Trial(0.0, Reason.REUSE, counted=True, candidate=last, row=min(row, len(last.motion) - 1))
                found.append((signs(memory, measured), is_off(trial, fresh, settings), age))
        run = [*run[-AGES - due :], fresh]  # no frame is reused, so each is fresh
        motion = motion.after(current.frame, current.stamp_s)
    rows, off, ages = zip(*found, strict=True) if found else ((), (), ())
    return Examples(np.reshape(rows, (-1, len(SIGNS))), np.array(off, dtype=bool), np.array(ages, dtype=np.int64))


def joined(parts: Sequence[Examples]) -> Examples:
    """Return the examples of several recordings as one."""
    return Examples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def learn(known: Examples) -> tuple[float, ...]:
    """Return the weights of a score, the constant last, as ``calibration.score`` takes them.

    Raises:
        SettingsError: All of the reuses are off, or none.
    """
    if not 0 < known.off.sum() < len(known.off):
        raise SettingsError(
            f"{int(known.off.sum())} of {len(known.off)} possible reuses are off, so nothing tells them apart: give "
            "longer recordings, or another calibration.tolerance"
        )
    middle, scale = known.signs.mean(axis=0), known.signs.std(axis=0) + 1e-9
    weights = logistic((known.signs - middle) / scale, known.off)
    slopes = weights[:-1] / scale
    return (*slopes.tolist(), float(weights[-1] - slopes @ middle))


def logistic(inputs: FloatArray, off: NDArray[np.bool_]) -> FloatArray:
    """Return the weights of a ridge logistic regression, the last one constant, by Newton's method."""
    design = np.column_stack([inputs, np.ones(len(inputs))])
    penalty = np.diag([RIDGE] * inputs.shape[1] + [1e-6])
    weights = np.zeros(design.shape[1])
    for _ in range(ROUNDS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (chance - off) + penalty @ weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
        weights -= np.linalg.solve(curve, slope)
    return weights


def auc(scores: FloatArray, off: NDArray[np.bool_]) -> float:
    """Return the chance that a reuse that is off scores higher than one that is not; NaN where either is missing."""
    right = np.sort(scores[~off])
    if not 0 < len(right) < len(off):
        return float("nan")
    below = np.searchsorted(right, scores[off], "left") + np.searchsorted(right, scores[off], "right")
    return float(below.mean() / (2 * len(right)))


def held_out(parts: Sequence[Examples]) -> float:
    """Return the AUC over all recordings, each scored by weights that have not seen it; NaN where they are too few."""
    if len(parts) < 2:
        return float("nan")
    scores = []
    for number, part in enumerate(parts):
        try:
            weights = np.array(learn(joined([*parts[:number], *parts[number + 1 :]])))
        except SettingsError:  # without this one, nothing tells reuses apart
            return float("nan")
        scores.append(part.signs @ weights[:-1] + weights[-1])
    return auc(np.concatenate(scores), joined(parts).off)
