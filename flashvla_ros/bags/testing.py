"""For the tests of your own robot: what the gate does on a recording of it, in numbers to assert on.

    from flashvla_ros.bags.testing import evaluate_bag, replay_bag

    def test_reuse_pays_and_stays_accurate():
        result = evaluate_bag("bags/pick_and_place", {"gate.delta": 0.6})
        assert result.reuse_rate > 0.25
        assert result.error_p95 < 0.1

    def test_nothing_has_changed_since_the_recording():
        assert replay_bag("bags/pick_and_place").identical

Nothing here needs a running ROS, a GPU, or pytest itself. See docs/bags.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashvla_ros.bags import sweep
from flashvla_ros.bags.answers import recorded_policy
from flashvla_ros.bags.options import Source
from flashvla_ros.bags.playback import Comparison
from flashvla_ros.bags.replay import replay
from flashvla_ros.bags.tuning import BagJob, run_job
from flashvla_ros.core.parameter import Value
from flashvla_ros.core.settings import find


@dataclasses.dataclass(frozen=True)
class GateResult:
    """What one setting does on one recording.

    Attributes:
        steps: Control steps.
        reuse_rate: Share of them that reused an action.
        error_p50, error_p95, error_max: Largest difference of any normalised dimension between a reused action and
            what the dense model says for that very frame; 0 where nothing was reused.
        reasons: How often the gate gave each of its reasons.
        warnings: What is odd about the recording.
    """

    steps: int
    reuse_rate: float
    error_p50: float
    error_p95: float
    error_max: float
    reasons: Mapping[str, int]
    warnings: tuple[str, ...]


def evaluate_bag(bag: str | Path, settings: Mapping[str, Any] | None = None, **reading: Any) -> GateResult:
    """Run the dense model over a recording, and the gate over what it said.

    Args:
        bag: rosbag2 folder, or one .mcap or .db3 file.
        settings: Parameters to use instead of the recorded ones, by their full names.
        reading: Further fields of :class:`flashvla_ros.bags.options.Source`, such as ``instruction`` or
            ``remappings={"image": "/camera/color/image_raw"}``.

    Raises:
        FlashVLAError: The recording or the checkpoint cannot be used; one line that says why.
    """
    source = Source(_parsed(settings), **reading)
    with source.open(Path(bag)) as recording:
        first = recording.settings.first
    outcome = run_job(BagJob(Path(bag), source, first, (first.gate,)))
    (row,) = sweep.evaluate([(outcome.features, outcome.sources)], [first.gate])
    error = row.error if row.reused else (0.0, 0.0, 0.0)
    reasons = [str(decision.reason) for decision in sweep.timeline(outcome.features, first.gate)]
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    return GateResult(row.steps, row.reuse_rate, *error, counts, tuple(outcome.warnings))


def replay_bag(bag: str | Path, settings: Mapping[str, Any] | None = None, **reading: Any) -> Comparison:
    """Replay a recording of the node, and compare every decision and action bit for bit.

    The arguments and errors are those of :func:`evaluate_bag`. ``identical`` and ``first`` (the first difference) are
    what to assert on.
    """
    with Source(_parsed(settings), **reading).open(Path(bag)) as recording:
        return replay(recording, recorded_policy(recording.settings.first, recording.log))


def _parsed(settings: Mapping[str, Any] | None) -> dict[str, Value]:
    return {name: find(name).parse(value) for name, value in (settings or {}).items()}
