"""The report of a tuning: one HTML file that needs nothing else, neither files nor network."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flashvla_ros.bags import sweep
from flashvla_ros.bags.features import CostlyFrame
from flashvla_ros.bags.tuning import SWEPT, BagOutcome, Tuning
from flashvla_ros.core.files import write_text
from flashvla_ros.core.reasons import Reason
from flashvla_ros.core.types import FloatArray
from flashvla_ros.gate.decision import GateDecision

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table, pre { display: block; overflow-x: auto }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: right }
tr.recommended { background: #e4f3e4; font-weight: 600 } tr.now { background: #f1f1f1 }
img.plot { max-width: 100% } figure { display: inline-block; margin: 0 1em 1em 0; width: 160px; vertical-align: top }
figcaption { font-size: 12px } pre { background: #f6f6f6; padding: .8em }
"""
_REUSE_COLOUR = "#2a9d3a"


def write_report(path: Path, tuning: Tuning) -> None:
    """Write the report of a tuning.

    Raises:
        FlashVLAError: The file cannot be written.
    """
    shown = tuning.best or tuning.now
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'><title>Gate tuning</title>",
        f"<style>{_STYLE}</style><h1>Gate tuning</h1>",
        _summary(tuning),
        "<h2>Reuse against error</h2>",
        _picture(_scatter(tuning)),
        _table(tuning),
        "<h2>Error by dimension</h2>",
        _dimensions(tuning, shown),
        *(_recording(outcome, shown, tuning) for outcome in tuning.outcomes),
        "</html>",
    ]
    write_text(path, "\n".join(parts))


def _summary(tuning: Tuning) -> str:
    here = tuning.outcomes[0].provenance
    facts = {
        "bags": ", ".join(str(outcome.bag) for outcome in tuning.outcomes),
        "steps": tuning.now.steps,
        "checkpoint": here.checkpoint[:16] or "unknown",
        **here.platform,
    }
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items())
    if tuning.best is None:
        advice = f"<p>Nothing reuses an action within a p95 error of {tuning.max_error:g}.</p>"
    else:
        commands = "\n".join(tuning.commands)
        advice = (
            f"<p>Recommended: {tuning.best.reuse_rate:.1%} of the steps reused at a p95 error of "
            f"{tuning.best.error[1]:.4f}, within the {tuning.max_error:g} allowed; {tuning.label}: "
            f"{tuning.now.reuse_rate:.1%}.</p>"
            f"<pre>{_text(commands)}</pre>"
        )
    note = (
        "<p>An error is the largest difference of any normalised dimension between a reused action and what the dense "
        "model says for that very frame. The recording was made under its own settings: another setting would have led "
        "the robot along another path, so try the recommended one on the robot before you rely on it.</p>"
    )
    return f"{advice}{note}<table>{lines}</table>"


def _scatter(tuning: Tuning) -> Figure:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in tuning.rows if row.reused]
    points = axes.scatter(
        [row.reuse_rate for row in rows],
        [row.error[1] for row in rows],
        c=[row.settings.delta for row in rows],
        s=[12 + 8 * row.settings.max_reuse for row in rows],
        cmap="viridis",
        alpha=0.8,
    )
    if rows:
        figure.colorbar(points, ax=axes, label="gate.delta")
    for row, marker, name in ((tuning.now, "s", tuning.label), (tuning.best, "*", "recommended")):
        if row is not None and row.reused:
            axes.scatter([row.reuse_rate], [row.error[1]], marker=marker, s=160, c="none", edgecolors="red", label=name)
    axes.axhline(tuning.max_error, color="red", linewidth=0.8, linestyle="--", label="largest error allowed")
    axes.set(xlabel="share of steps reused", ylabel="p95 error (normalised)")
    axes.legend()
    return figure


def _table(tuning: Tuning) -> str:
    head = "".join(f"<th>{name}</th>" for name in (*SWEPT, "reused", "p50", "p95", "max"))
    rows = [_table_row(tuning.now, tuning.label)]
    rows += [_table_row(row, "recommended" if row is tuning.best else "") for row in sweep.frontier(tuning.rows)]
    return (
        f"<p>The setting of the recording, then those that no other beats in both reuse and error.</p>"
        f"<table><tr>{head}<th></th></tr>{''.join(rows)}</table>"
    )


def _table_row(row: sweep.Row, name: str) -> str:
    values = [f"{getattr(row.settings, name):g}" for name in SWEPT]
    values += [f"{row.reuse_rate:.1%}", *map(_number, row.error)]
    kind = name.partition(",")[0]
    return f"<tr class='{kind}'>{''.join(f'<td>{value}</td>' for value in values)}<td>{name}</td></tr>"


def _dimensions(tuning: Tuning, row: sweep.Row) -> str:
    columns = zip(tuning.settings.action.names, row.by_dimension.T, strict=True)
    lines = "".join(
        f"<tr><th>{_text(name)}</th>{''.join(f'<td>{_number(value)}</td>' for value in column)}</tr>"
        for name, column in columns
    )
    return f"<table><tr><th></th><th>p50</th><th>p95</th><th>max</th></tr>{lines}</table>"


def _recording(outcome: BagOutcome, row: sweep.Row, tuning: Tuning) -> str:
    decisions = sweep.timeline(outcome.features, row.settings)
    warnings = "".join(f"<p>⚠ {_text(warning)}</p>" for warning in outcome.warnings)
    reused = sum(decision.reason is Reason.REUSE for decision in decisions)
    figures = "".join(_costly(outcome, frame, decisions[frame.index]) for frame in outcome.features.worst)
    return (
        f"<h2>{_text(outcome.bag)}</h2>{warnings}"
        f"<p>{len(decisions)} steps, {reused} reused under the setting above ({reused / len(decisions):.1%}).</p>"
        f"{_picture(_timeline(outcome, decisions, tuning))}"
        f"<h3>Where reuse would have cost most</h3>{figures}"
    )


def _timeline(outcome: BagOutcome, decisions: list[GateDecision], tuning: Tuning) -> Figure:
    """Each step's reason over time, and the error of each reused step."""
    times = (outcome.features.times_ns - outcome.features.times_ns[0]) / 1e9
    reasons = np.asarray([str(decision.reason) for decision in decisions])
    names, counts = np.unique(reasons, return_counts=True)
    names = names[np.argsort(counts)]
    figure = Figure(figsize=(11, 1.5 + 0.25 * len(names) + 2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[0.3 * len(names) + 0.3, 2])
    _draw_reasons(top, times, reasons, names)
    sources = _sources(decisions)
    frames = sweep.reused_frames(outcome.features, sources, decisions[0].settings)
    bottom.vlines(times[frames], 0.0, sweep.errors(outcome.features, sources, frames).max(axis=1), color=_REUSE_COLOUR)
    bottom.axhline(tuning.max_error, color="red", linewidth=0.8, linestyle="--")
    bottom.set(xlabel="seconds from the first frame", ylabel="error of reuse")
    return figure


def _draw_reasons(axes: Axes, times: FloatArray, reasons: NDArray[np.str_], names: NDArray[np.str_]) -> None:
    for line, name in enumerate(names):
        chosen = times[reasons == name]
        colour = _REUSE_COLOUR if name == Reason.REUSE else "#444"
        axes.plot(chosen, np.full(len(chosen), line), "|", color=colour, markersize=8)
    axes.set_yticks(range(len(names)), [f"{name} ({int((reasons == name).sum())})" for name in names])
    axes.set_ylim(-0.7, len(names) - 0.3)


def _sources(decisions: list[GateDecision]) -> NDArray[np.int32]:
    """[F] frame whose action is in force at each frame."""
    fresh = np.where([decision.reuse for decision in decisions], -1, np.arange(len(decisions)))
    return np.maximum.accumulate(fresh).astype(np.int32)


def _costly(outcome: BagOutcome, frame: CostlyFrame, decision: GateDecision) -> str:
    seconds = (outcome.features.times_ns[frame.index] - outcome.features.times_ns[0]) / 1e9
    verdict = "<b>reused</b>" if decision.reuse else f"model run: {decision.reason}"
    return (
        f"<figure><img alt='frame {frame.index}' src='{_data('jpeg', frame.jpeg)}'><figcaption>frame {frame.index}, "
        f"{seconds:.2f} s<br>the action before would be off by {frame.cost:.3f}<br>{verdict}"
        "</figcaption></figure>"
    )


def _picture(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return f"<img class='plot' alt='plot' src='{_data('png', stream.getvalue())}'>"


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _text(value: object) -> str:
    return html.escape(str(value))
