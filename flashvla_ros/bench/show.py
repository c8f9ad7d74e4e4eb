"""Results of ``flashvla-ros bench`` as text for a terminal, as Markdown for a page, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.core.errors import FlashVLAError

STAGES = ("preprocess", "vision", "prefill", "scoring", "decode", "generate")
_LEAST_MS = 0.1  # a ratio to less than this says nothing
_COUNTED, _MOVED = ("vision", "prefill", "decode"), ("weights", "inputs", "activations")

Results = Mapping[str, Any]


def text(results: Results) -> str:
    """Return a table of times and ratios, aligned."""
    rows = [("configuration", "p50 ms", "p95 ms", "speedup", "95 % interval")]
    for row in results["rows"]:
        low, high = row["speedup_95"]
        times = ms(row["p50_ms"]), ms(row["p95_ms"])
        rows.append((row["name"], *times, f"{row['speedup']:.2f}", f"{low:.2f}-{high:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows]
    return "\n".join([*lines, "", *_words(results["meta"])])


def markdown(results: Results) -> str:
    """Return the tables of a run for a page."""
    parts = ["\n".join(_words(results["meta"])), steps_table(results), stages_table(results), work_table(results)]
    return "\n\n".join(parts)


def steps_table(results: Results) -> str:
    """Return the table of whole steps."""
    rows = []
    for row in results["rows"]:
        low, high = row["speedup_95"]
        cpu = f"{row['cpu_speedup']:.2f}" if "cpu_speedup" in row else "–"
        least = f"{row['over_least']:.2f}" if "over_least" in row else "–"
        reuse = f"{100 * row['reuse_rate']:.0f} %" if "reuse_rate" in row else "–"
        ratio = f"**{row['speedup']:.2f}** ({low:.2f}-{high:.2f})"
        times = [ms(row[name]) for name in ("p50_ms", "p95_ms", "mean_ms")]
        rows.append([row["name"], *times, ratio, cpu, reuse, least])
    head = ["step", "p50 [ms]", "p95 [ms]", "mean [ms]", "speedup (95 %)", "by CPU time", "reused", "p50 / least"]
    return table(head, rows)


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, all columns but the first aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _words(meta: Mapping[str, Any]) -> list[str]:
    """What the figures hold for, in sentences."""
    roofline, memory, versions = meta["roofline"], meta["memory"], meta["versions"]
    lines = [
        f"{meta['model']} on {meta['device']}, {meta['cores']} cores, {meta['threads']} threads, {meta['dtype']}, "
        f"attention {meta['attention']}, engine {meta['engine']}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {meta['rounds']} rounds; "
        f"load average {meta['load'][0]:.1f} before and {meta['load'][1]:.1f} after.",
        f"Best rates in this run: {roofline['flops_per_s'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{roofline['copy_bytes_per_s'] / 1e9:.1f} GB/s in copies, {roofline['gemv_bytes_per_s'] / 1e9:.1f} GB/s in "
        f"matrix-vector products.",
        f"Gate: {meta['gate']['p50_ms']:.3f} ms (p95 {meta['gate']['p95_ms']:.3f}).",
        f"Dense tokens equal to those of generate in {meta['tokens_equal_plain']}.",
        f"Memory: peak {memory['peak_bytes'] / 2**20:.0f} MiB, {memory['growth_bytes'] / 2**20:+.1f} MiB over the last "
        f"{memory['steps']} steps.",
    ]
    return [*lines, meta["note"]] if meta["note"] else lines


def ms(value: float) -> str:
    """Return milliseconds with three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_COLOURS = dict(zip(STAGES, ("#999", "#4477aa", "#66ccee", "#ee6677", "#228833", "#ccbb44"), strict=True))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a picture.

    Raises:
        FlashVLAError: The file cannot be written, or its ending names no kind of picture.
    """
    from matplotlib.figure import Figure

    rows = results["rows"][::-1]
    figure = Figure(figsize=(11, 1.4 + 0.32 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for line, row in enumerate(rows):
        start = 0.0
        for stage, values in row.get("stages", {}).items():
            left.barh(line, values["p50_ms"], left=start, color=_COLOURS.get(stage, "#bbbbbb"))
            start += values["p50_ms"]
        if not start:
            left.barh(line, row["mean_ms"], color="#aa3377")
        if "least_ms" in row:
            left.plot([row["least_ms"]] * 2, [line - 0.4, line + 0.4], color="black", linewidth=1)
        low, high = row["speedup_95"]
        error = [[max(row["speedup"] - low, 0.0)], [max(high - row["speedup"], 0.0)]]
        right.errorbar(row["speedup"], line, xerr=error, fmt="o", color="#aa3377" if "reuse_rate" in row else "#4477aa")
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.set(xlabel="ms a step (line: the least by the roofline)")
    handles = [left.barh(0, 0, color=colour, label=stage) for stage, colour in _COLOURS.items()]
    handles.append(left.barh(0, 0, color="#aa3377", label="mean over a trace"))
    left.legend(handles=handles, fontsize="x-small")
    right.axvline(1.0, color="#999", linewidth=0.8)
    right.set(xlabel="speedup over plain generate (95 %)")
    meta = results["meta"]
    figure.suptitle(f"{meta['model']} on {meta['device']}, {meta['dtype']}, {meta['threads']} threads", fontsize=10)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise FlashVLAError(f"cannot draw {path}: {error}") from error
