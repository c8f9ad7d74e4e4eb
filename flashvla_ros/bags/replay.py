"""``flashvla-ros replay``: a recording once more through the node's own gate, policy and safety, at full speed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flashvla_ros.bags.answers import recorded_policy
from flashvla_ros.bags.options import Recording, Source
from flashvla_ros.bags.options import add_arguments as add_source_arguments
from flashvla_ros.bags.playback import Comparison, play, reasons_to_differ
from flashvla_ros.cli.exits import EXIT_DIFFERENT
from flashvla_ros.cli.progress import INTERVAL_S
from flashvla_ros.cli.results import meta, write_results
from flashvla_ros.control.stepper import Stepper
from flashvla_ros.core.provenance import Provenance
from flashvla_ros.core.types import ActionSpec
from flashvla_ros.vla.loading import LoadedPolicy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``replay``."""
    parser.add_argument("bag", type=Path, help="rosbag2 folder, or one .mcap or .db3 file")
    add_source_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcome here as well")


def run(args: argparse.Namespace) -> int:
    """Replay and report; exit code 1 where a comparison was possible and failed."""
    source = Source.of(args)
    with source.open(args.bag) as recording:
        settings = recording.settings.first
        loaded = recorded_policy(settings, recording.log)
        comparison = replay(recording, loaded, progress=True)
        here = Provenance(settings, loaded.checkpoint, loaded.platform)
        why = _why(recording, here, source)
    for warning in recording.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for line in _lines(comparison, why):
        print(line)
    if args.json:
        made = meta(
            here.platform.get("device", ""),
            command="replay",
            bag=args.bag,
            warnings=recording.warnings,
            platform=dict(here.platform),
            checkpoint=here.checkpoint,
            settings=settings.values(),
        )
        write_results(args.json, made, [_row(comparison, why)])
    return EXIT_DIFFERENT if comparison.compared and not comparison.identical else 0


def replay(recording: Recording, loaded: LoadedPolicy, *, progress: bool = False) -> Comparison:
    """Replay an open recording on a policy.

    Raises:
        BagError: It has no observation, or is of another kind than it says.
        ObservationError: The policy cannot use its observations.
        ActionError: The policy has another action size than ``action.names`` declares.
    """
    stepper = Stepper(loaded.policy, ActionSpec.of(recording.settings.first.action))
    comparison = Comparison()
    with tqdm(unit="step", disable=not progress, mininterval=INTERVAL_S, delay=INTERVAL_S) as bar:
        for frame, result in play(recording.frames, stepper, recording.settings.at):
            comparison.add(frame.recorded, result)
            bar.update()
    comparison.missing = len(recording.frames.missing)
    return comparison


def _why(recording: Recording, here: Provenance, source: Source) -> list[str]:
    reasons = reasons_to_differ(recording.log, here, source.changed)
    unknown, missing = recording.settings.unknown, recording.frames.missing
    if unknown:
        reasons.append(
            f"the settings of {len(unknown)} steps are not in the bag, the first those of step {unknown[0].step}"
        )
    if missing:
        reasons.append(
            f"the images of {len(missing)} steps are not in the bag, the first that of step {missing[0].step}"
        )
    return reasons or ["nothing known differs: another CPU or GPU of the same name, or a defect"]


def _lines(comparison: Comparison, why: list[str]) -> list[str]:
    steps = comparison.steps
    lines = [f"{steps} steps replayed, {comparison.reuses} of them reused ({comparison.reuses / steps:.1%})"]
    if not comparison.compared:
        return [*lines, "the bag does not hold the node's decisions (~/gate): there is nothing to compare with"]
    if comparison.identical:
        return [*lines, f"identical: every decision and action of all {steps} steps, bit for bit"]
    lines.append(
        f"different: {comparison.differing} of {comparison.compared} compared steps, {comparison.missing} missing"
    )
    lines.append(f"reused in the recording: {comparison.recorded_reuses / comparison.compared:.1%}")
    if comparison.first:
        lines.append(f"first difference: {comparison.first}")
    return [*lines, *(f"because {reason}" for reason in why)]


def _row(comparison: Comparison, why: list[str]) -> dict[str, Any]:
    return {
        "steps": comparison.steps,
        "identical": comparison.identical if comparison.compared else None,
        "first_difference": dataclasses.asdict(comparison.first) if comparison.first else None,
        "why": [] if comparison.identical or not comparison.compared else why,
        "compared": comparison.compared,
        "differing": comparison.differing,
        "missing": comparison.missing,
        "reuse_rate": comparison.reuses / comparison.steps,
        "recorded_reuse_rate": comparison.recorded_reuses / comparison.compared if comparison.compared else None,
    }
