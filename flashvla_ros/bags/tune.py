"""``flashvla-ros tune``: the thresholds that reuse most within an error you allow, from recordings of your robot."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flashvla_ros.bags import learning, proposals, sweep
from flashvla_ros.bags.options import Source
from flashvla_ros.bags.options import add_arguments as add_source_arguments
from flashvla_ros.bags.report import write_report
from flashvla_ros.bags.tuning import SWEPT, Tuning, tune
from flashvla_ros.cli.fanout import add_arguments as add_fanout_arguments
from flashvla_ros.cli.results import meta, write_results
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.files import write_text
from flashvla_ros.core.settings import find

DELTAS = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
PRINTED_ROWS = 12
_OF_GATE = ("max_error", "delta", "angle", "reuse", "risk", "html", "yaml", "json", "score", "jobs", "ray", "ray_gpus")
_OF_PROPOSALS = ("quantile", "margin", "step_matrix", "alarm_rate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``tune``."""
    parser.add_argument("bags", type=Path, nargs="+", metavar="BAG", help="rosbag2 folders, or .mcap or .db3 files")
    parser.add_argument("--max-error", type=float, default=0.1, help="largest p95 error, normalised (%(default)s)")
    parser.add_argument("--delta", default=DELTAS, metavar="LIST", help="values of gate.delta (%(default)s)")
    parser.add_argument(
        "--angle", default="2,5,10,20,40", metavar="LIST", help="values of gate.max_angle_deg (%(default)s)"
    )
    parser.add_argument("--reuse", default="1,2,3,5", metavar="LIST", help="values of gate.max_reuse (%(default)s)")
    parser.add_argument("--risk", default="0.02,0.05,0.1", metavar="LIST", help="of gate.calibration (%(default)s)")
    parser.add_argument("--html", type=Path, default=Path("tune.html"), help="report to write (%(default)s)")
    parser.add_argument("--yaml", type=Path, default=Path("tune.yaml"), help="parameters to write (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row here as well")
    parser.add_argument("--score", type=Path, metavar="FILE", help="learn a score for calibration; its parameters")
    proposals.add_arguments(parser)
    add_source_arguments(parser)
    add_fanout_arguments(parser)
    parser.set_defaults(default_of=parser.get_default)


def run(args: argparse.Namespace) -> int:
    """Tune and report; returns the exit code."""
    proposes = bool(args.limits or args.monitors)
    no_part = _OF_GATE if proposes else _OF_PROPOSALS
    if ignored := [name for name in no_part if vars(args)[name] != args.default_of(name)]:
        why = "has no part in" if proposes else "says nothing without"
        raise SettingsError(f"--{ignored[0].replace('_', '-')} {why} --limits or --monitors: leave it out")
    if proposes:
        return proposals.run(args)
    swept = zip(SWEPT, (args.delta, args.angle, args.reuse), strict=True)
    deltas, angles, caps = (values(f"gate.{name}", text) for name, text in swept)
    risks = values("calibration.risk", args.risk)
    fan = {"jobs": args.jobs, "ray": args.ray, "ray_gpus": args.ray_gpus}
    tuning = tune(args.bags, Source.of(args), (deltas, angles, caps), args.max_error, risks=risks, **fan)
    for outcome in tuning.outcomes:
        for warning in outcome.warnings:
            print(f"warning: {outcome.bag}: {warning}", file=sys.stderr)
    print("\n".join(_lines(tuning)))
    write_report(args.html, tuning)
    if tuning.best is not None:
        write_text(args.yaml, _parameters("gate", tuning.recommended))
    print(f"wrote {args.html}" + (f" and {args.yaml}" if tuning.best else ""))
    if args.json:
        write_results(args.json, _meta(tuning), [_json_row(row, tuning) for row in tuning.rows])
    if args.score:
        print(_learn(args.score, tuning))
    return 0


def values(name: str, text: str) -> list[Any]:
    """Read the values of one parameter to sweep, with commas between them.

    Raises:
        SettingsError: One is not a number, or not one that the parameter can have.
    """
    row = find(name)
    try:
        numbers = [int(part) if row.kind == "int" else float(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingsError(f"values of {row.name} are numbers with commas between them, got {text!r}") from error
    return [row.parse(number) for number in numbers]


def _parameters(group: str, values: dict[str, Any]) -> str:
    """Return the parameters of a group as a ROS parameter file, whatever the node is called."""
    return yaml.safe_dump({"/**": {"ros__parameters": {group: values}}}, sort_keys=False)


def _learn(path: Path, tuning: Tuning) -> str:
    """Write the parameters of a score that is learnt from all recordings; return what it is worth in words."""
    parts = [learning.examples(outcome.features, tuning.settings) for outcome in tuning.outcomes]
    known = learning.joined(parts)
    write_text(path, _parameters("calibration", {"score": list(learning.learn(known))}))
    worth = learning.held_out(parts)
    held = "too few recordings to say what it is worth" if math.isnan(worth) else f"AUC {worth:.2f} on bags unseen"
    return f"wrote {path}: a score from {len(known.off)} possible reuses, {known.off.mean():.1%} of them off; {held}"


def _lines(tuning: Tuning) -> list[str]:
    """Return what is printed: the current setting, the best trade-offs, and how to set the recommended one."""
    outcomes, best = tuning.outcomes, tuning.best
    lines = [
        f"{tuning.now.steps} steps in {len(outcomes)} bag(s); dense pass {sum(o.dense_s for o in outcomes):.1f} s, "
        f"{len(tuning.rows)} settings in {sum(o.sweep_s for o in outcomes):.1f} s",
        "error: largest difference of any normalised dimension from what the dense model says for that frame",
        "",
        f"{'delta':>6} {'max_angle_deg':>13} {'max_reuse':>9} {'reused':>8} {'p50':>7} {'p95':>7} {'max':>7}",
        f"{_line(tuning.now)}  {tuning.label}",
    ]
    lines += [_line(row) + ("  recommended" if row is best else "") for row in _shown(tuning)]
    lines += ["", *_calibrated(tuning.calibrated)]
    if best is None:
        return [*lines, "", _advice(tuning)]
    lines += ["", "error of the recommended setting by dimension:"]
    for name, (p50, p95, greatest) in zip(tuning.settings.action.names, best.by_dimension.T, strict=True):
        lines.append(f"  {name:16} p50 {p50:.4f}  p95 {p95:.4f}  max {greatest:.4f}")
    return [*lines, "", *tuning.commands, ""]


def _calibrated(rows: Sequence[sweep.Calibrated]) -> list[str]:
    """What ``gate.calibration: online`` would have made of the recordings, one after another."""
    head = (
        f"{'risk':>6} {'reused':>8} {'audited':>8} {'off':>7} {'λ':>6} {'certified':>9}  with gate.calibration online"
    )
    return [head] + [
        f"{row.risk:6.3g} {row.reused / row.steps:8.1%} {row.audited / row.steps:8.1%} {row.off / row.steps:7.2%} "
        f"{row.state.permissiveness:6.2f} {row.state.certified_level:9.2f}"
        for row in rows
    ]


def _advice(tuning: Tuning) -> str:
    """What to do where nothing can be recommended."""
    least = min((row.error[1] for row in tuning.rows if row.reused), default=None)
    if least is None:
        return "no setting of this grid reuses anything: widen it, or look at the reasons in the report"
    return f"no p95 error is within --max-error {tuning.max_error:g}, the least is {least:.4f}: keep gate.mode off"


def _shown(tuning: Tuning) -> list[sweep.Row]:
    """The best trade-offs, thinned out evenly where there are many; always with the recommended one."""
    rows = sweep.frontier(tuning.rows)
    every = -(-len(rows) // PRINTED_ROWS)
    return [row for number, row in enumerate(rows) if number % every == 0 or row is tuning.best]


def _line(row: sweep.Row) -> str:
    gate = row.settings
    head = f"{gate.delta:6.2f} {gate.max_angle_deg:13.1f} {gate.max_reuse:9d} {row.reuse_rate:8.1%}"
    return head + "".join("       -" if math.isnan(value) else f" {value:7.4f}" for value in row.error)


def _json_row(row: sweep.Row, tuning: Tuning) -> dict[str, Any]:
    quantiles = ("p50", "p95", "max")
    columns = zip(tuning.settings.action.names, row.by_dimension.T, strict=True)
    return {
        **{name: getattr(row.settings, name) for name in SWEPT},
        "reuse_rate": row.reuse_rate,
        **{f"error_{name}": value for name, value in zip(quantiles, row.error, strict=True)},
        "by_dimension": {name: dict(zip(quantiles, column, strict=True)) for name, column in columns},
        "recommended": row is tuning.best,
    }


def _meta(tuning: Tuning) -> dict[str, Any]:
    outcomes = tuning.outcomes
    here = outcomes[0].provenance
    return meta(
        here.platform.get("device", ""),
        command="tune",
        bags=[outcome.bag for outcome in outcomes],
        steps=tuning.now.steps,
        max_error=tuning.max_error,
        dense_s=[outcome.dense_s for outcome in outcomes],
        sweep_s=[outcome.sweep_s for outcome in outcomes],
        calibrated=[
            {name: getattr(row, name) for name in ("risk", "steps", "reused", "audited", "off")}
            | {"permissiveness": row.state.permissiveness, "certified": row.state.certified_level}
            for row in tuning.calibrated
        ],
        warnings=[f"{outcome.bag}: {warning}" for outcome in outcomes for warning in outcome.warnings],
        platform=dict(here.platform),
        checkpoint=here.checkpoint,
        settings=tuning.settings.values(),
    )
