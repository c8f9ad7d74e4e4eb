"""The table and the picture of the rivals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import table
from flashvla_ros.bench.command import ms
from flashvla_ros.evaluation.markdown import origins
from flashvla_ros.evaluation.statistics import Paired
from flashvla_ros.evaluation.summary import rates


def page(results: Mapping[str, Any]) -> str:
    """Return each configuration: success, FLOPs, time."""
    run, rows, lines = results["meta"], results["rows"], []
    for row in rows:
        low, high = row["speedup_95"]
        steps = f"{ms(row['step_ms'])} (**{row['speedup']:.2f}**, {low:.2f}-{high:.2f})"
        model = f"{ms(row['model_ms'])} ({row['over_least']:.1f})"
        against = ""
        if "lost" in row:  # its mcnemar_p is rounded in older files: 0 for what is small
            pair = Paired(row["lost"], row["won"])
            against = f"{pair.lost} / {pair.won}, p = {pair.mcnemar_p:.2g}"
        shares = (f"{row[name]:.2f}" for name in ("reuse_rate", "visual_flops_ratio", "flops_ratio"))
        lines.append([f"`{row['mode']}`", str(rates(row)), against, *shares, model, steps])
    head = ["rule", "success", "lost / won against dense", "reuse", "visual FLOPs", "FLOPs", "model [ms]", "step [ms]"]
    plain = run["plain"]
    told = f"; {origins(run)}".rstrip("; ")
    words = (
        f"`{run['checkpoint']['name']}` on {run['device']}, {run['dtype']}, {run['threads']} thread; "
        f"{', '.join(run['tasks'])}; seeds {run['seeds'][0]} to {run['seeds'][1] - 1} of each{told}. "
        f"Behind a model time: how many times the roofline's least time it is. Behind a mean step: times as fast as "
        f"transformers' generate ({ms(plain['model_ms'])} ms, {plain['over_least']:.1f} times its least), "
        f"with the 95 % interval."
    )
    return f"{words}\n\n{table(head, lines)}"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write success with its interval against the mean step."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)  # a colour for each of the dozen rows
    for row in results["rows"]:
        found = rates(row)
        low, high = found.interval
        error = [[found.value - low], [high - found.value]]
        axes.errorbar(row["step_ms"], found.value, yerr=error, fmt="o", capsize=2, label=row["mode"])
    axes.set(xlabel="mean step [ms]", ylabel="success, 95 %", ylim=(-0.03, 1.06), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.suptitle(results["meta"]["checkpoint"]["name"], fontsize=10)
    figure.savefig(path, dpi=110)
