"""How many faults in real actions the guard's rules find: ``python -m benchmarks.droid_faults FILE --json F.json``.

FILE is ``supervisor_eval.npz`` of LaelaZorana/embodied-efficiency (safety/data, derived from DROID, CC BY 4.0). Every
limit comes from its calibration part, through the code of ``flashvla-ros tune --limits``. Its rows do not follow each
other, so the bound of a step is read off pairs of them: as far apart as two moments that have nothing to do with each
other. The rows *0 %* and *1 %* scale that bound to so many false alarms among the evaluated normal actions, as the
published figure does; the others know nothing of them. Each action is judged by a guard whose robot rests where the
action before it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import publish, table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.control.proposal import propose, whitened
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.types import ActionKind, ActionSpec
from flashvla_ros.guard.rules import Age, Guard
from flashvla_ros.guard.settings import GuardSettings

_NAMES = ("vx", "vy", "vz", "vroll", "vpitch", "vyaw", "grip")
_SPEC = ActionSpec(_NAMES, (ActionKind.ABSOLUTE,) * 7, 0.1)
_KINDS = ("nonfinite", "out_of_bounds", "drift", "jerk")
_PUBLISHED = {"limits": "published, 1 % false alarms", "false_alarms": 0.01, "detected": 0.91}
_MARGIN = 0.05
_RELATED = 0.05  # of unrelated pairs are as close as the bound: it is to find the others


class Faults:
    """The data, and the guard's judgement of it.

    Attributes:
        shared: Rows that were left out of the calibration part, since they are evaluated too.
    """

    def __init__(self, path: Path) -> None:
        try:
            data = np.load(path)
            self.calibration, self.actions, self.before, self.kinds = (
                data[name].astype(np.float64) for name in ("calib_actions", "eval_action", "eval_prev", "eval_ftype")
            )
        except (OSError, KeyError, ValueError) as error:
            raise FlashVLAError(f"{path} is not supervisor_eval.npz: {error}") from error
        evaluated = {row.tobytes() for row in (*self.actions, *self.before)}
        seen = np.array([row.tobytes() in evaluated for row in self.calibration])
        self.calibration, self.shared = self.calibration[~seen], int(seen.sum())

    def refused(self, values: Mapping[str, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return which evaluated actions a guard with these parameters refuses."""
        settings = GuardSettings.of({**_MEANING, **values})
        found = np.empty(len(rows), dtype=bool)
        for place, row in enumerate(rows):
            positions = dict(zip(_NAMES, self.before[row].tolist(), strict=True))
            found[place] = not Guard(settings).command(self.actions[row][np.newaxis], Age(), 0.0, positions)[0]
        return found

    def score(self, words: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shares of refused actions, by kind."""
        refused = self.refused(values, np.arange(len(self.actions)))
        by_kind = {name: float(refused[self.kinds == code].mean()) for code, name in enumerate(_KINDS, 1)}
        normal = self.kinds == 0
        return {
            "limits": words,
            "false_alarms": float(refused[normal].mean()),
            "detected": float(refused[~normal].mean()),
            **by_kind,
        }


_MEANING = {
    "command.type": "Float64MultiArray",
    "action.names": _NAMES,
    "action.kinds": tuple(str(kind) for kind in _SPEC.kinds),
    "guard.stop_action": "none",
}


def measure(faults: Faults) -> list[dict[str, Any]]:
    """Judge every evaluated action under limits from the calibration part, chosen in several ways."""
    proposal = propose([faults.calibration], _SPEC, 1.0, _MARGIN)
    bounds = {"limits.lower": proposal.limits.lower, "limits.upper": proposal.limits.upper}
    whitening = whitened(faults.calibration)
    moving = faults.calibration[np.any(faults.calibration[:, :6] != 0.0, axis=1)]  # a robot that rests says nothing
    pairs = moving[np.random.default_rng(0).permutation(len(moving))] - moving
    lengths = np.linalg.norm(pairs @ whitening.T, axis=1)
    related = float(np.quantile(lengths, _RELATED))

    def within(length: float) -> dict[str, Any]:
        return {**bounds, "guard.step_matrix": tuple((whitening / length).ravel())}

    steps = {"limits.max_step": proposal.limits.max_step}
    rows = [
        faults.score("range", bounds),
        faults.score("range, step of each dimension", {**bounds, **steps}),
        faults.score(f"range, step matrix at {_RELATED:.0%} of unrelated pairs", within(related)),
    ]
    for share in (0.0, 0.01):
        length = _scaled(faults, within, share)
        rows.append(faults.score(f"range, step matrix scaled to {share:.0%} false alarms", within(length)))
    return rows


def _scaled(faults: Faults, within: Any, share: float) -> float:
    """Return the least length of a step at which at most this share of the normal actions is refused."""
    normal = np.flatnonzero(faults.kinds == 0)
    low, high = 0.1, 20.0
    for _ in range(12):
        middle = (low + high) / 2.0
        low, high = (low, middle) if faults.refused(within(middle), normal).mean() <= share else (middle, high)
    return high


def page(results: Mapping[str, Any]) -> str:
    """Return detection by kind, beside the published figure."""
    run = results["meta"]
    names = ("false_alarms", "detected", *_KINDS)
    lines = [
        [row["limits"], *(f"{row[name]:.1%}" if name in row else "–" for name in names)]
        for row in [*results["rows"], _PUBLISHED]
    ]
    head = ["limits", "false alarms", "detected", *(name.replace("_", " ") for name in _KINDS)]
    words = (
        f"{run['normal']} normal actions and {run['faults']} with a fault; {run['calibration']} rows to calibrate on, "
        f"without {run['shared']} that are evaluated too."
    )
    return f"{words}\n\n{table(head, lines)}"


def _run(args: argparse.Namespace) -> None:
    faults = Faults(args.file)
    rows = measure(faults)
    normal = int((faults.kinds == 0).sum())
    made = meta(
        processor_name(),
        command="droid_faults",
        normal=normal,
        faults=len(faults.kinds) - normal,
        calibration=len(faults.calibration),
        shared=faults.shared,
    )
    publish(page, made, rows, args.json)


def main() -> int:
    """Judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE", help="supervisor_eval.npz")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    args = parser.parse_args()
    return exit_code(lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
