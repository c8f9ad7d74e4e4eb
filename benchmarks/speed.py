"""Results of ``flashvla-ros bench`` as tables of the page of results: whole steps, stages, counted work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import table
from flashvla_ros.bench.command import STAGES, ms, words

_LEAST_MS = 0.1  # a ratio to less than this says nothing
_COUNTED, _MOVED = ("vision", "prefill", "decode"), ("weights", "inputs", "activations")

Results = Mapping[str, Any]


def page(results: Results) -> str:
    """Return the tables of a run."""
    parts = ["\n".join(words(results["meta"])), steps_table(results), stages_table(results), work_table(results)]
    return "\n\n".join(parts)


def steps_table(results: Results) -> str:
    """Return the table of whole steps."""
    rows, counted = [], any("joules" in row for row in results["rows"])
    for row in results["rows"]:
        low, high = row["speedup_95"]
        cpu = f"{row['cpu_speedup']:.2f}" if "cpu_speedup" in row else "–"
        least = f"{row['over_least']:.2f}" if "over_least" in row else "–"
        reuse = f"{100 * row['reuse_rate']:.0f} %" if "reuse_rate" in row else "–"
        ratio = f"**{row['speedup']:.2f}** ({low:.2f}-{high:.2f})"
        times = [ms(row[name]) for name in ("p50_ms", "p95_ms", "mean_ms")]
        joules = [f"{row['joules']:.2f}" if "joules" in row else "–"] * counted
        rows.append([row["name"], *times, ratio, cpu, reuse, least, *joules])
    head = ["step", "p50 [ms]", "p95 [ms]", "mean [ms]", "speedup (95 %)", "by CPU time", "reused", "p50 / least"]
    return table(head + ["energy [J]"] * counted, rows)


def stages_table(results: Results) -> str:
    """Return the table of stages: median milliseconds, and how many times the least possible in brackets."""
    rows = []
    for row in results["rows"]:
        if "stages" not in row:
            continue
        cells = []
        for name in STAGES:
            stage = row["stages"].get(name)
            over = f" ({stage['over_least']:.1f})" if stage and stage.get("least_ms", 0.0) > _LEAST_MS else ""
            cells.append(f"{ms(stage['p50_ms'])}{over}" if stage else "–")
        rows.append([row["name"], *cells])
    return table(["median [ms]", *STAGES], rows)


def work_table(results: Results) -> str:
    """Return the table of counted work."""
    rows = []
    for row in results["rows"]:
        stages = {name: stage for name, stage in row.get("stages", {}).items() if "flops" in stage}
        if not stages:
            continue
        flops = [f"{stages[name]['flops'] / 1e9:.2f}" for name in _COUNTED]
        moved = [f"{sum(stage[kind] for stage in stages.values()) / 1e6:.1f}" for kind in _MOVED]
        rows.append([row["name"], *flops, *moved, ms(row["least_ms"])])
    units = [f"{name} [GFLOP]" for name in _COUNTED] + [f"{name} [MB]" for name in _MOVED]
    return table(["work of one step", *units, "least [ms]"], rows)
