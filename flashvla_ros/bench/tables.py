"""Results of ``flashvla-ros bench`` as text for a terminal and as Markdown for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STAGES = ("preprocess", "vision", "prefill", "scoring", "decode", "generate")
_LEAST_MS = 0.1  # a ratio to less than this says nothing
_COUNTED, _MOVED = ("vision", "prefill", "decode"), ("weights", "inputs", "activations")

Results = Mapping[str, Any]


def text(results: Results) -> str:
    """Return a table of times and ratios, aligned."""
    rows = [("configuration", "p50 ms", "p95 ms", "speedup", "95 % interval")]
    for row in results["rows"]:
        low, high = row["speedup_95"]
        times = _ms(row["p50_ms"]), _ms(row["p95_ms"])
        rows.append((row["name"], *times, f"{row['speedup']:.2f}", f"{low:.2f}-{high:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows]
    return "\n".join([*lines, "", *_words(results["meta"])])


def markdown(results: Results) -> str:
    """Return every table that a page shows of the results of a command of this room."""
    tables = {"growth": growth_table, "ics_cost": ics_table, "engine_cost": engine_table}
    return tables.get(results["meta"].get("command", ""), _bench_tables)(results)


def _bench_tables(results: Results) -> str:
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
        times = [_ms(row[name]) for name in ("p50_ms", "p95_ms", "mean_ms")]
        rows.append([row["name"], *times, ratio, cpu, reuse, least])
    head = ["step", "p50 [ms]", "p95 [ms]", "mean [ms]", "speedup (95 %)", "by CPU time", "reused", "p50 / least"]
    return _table(head, rows)


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
            cells.append(f"{_ms(stage['p50_ms'])}{over}" if stage else "–")
        rows.append([row["name"], *cells])
    return _table(["median [ms]", *STAGES], rows)


def work_table(results: Results) -> str:
    """Return the table of counted work."""
    rows = []
    for row in results["rows"]:
        stages = {name: stage for name, stage in row.get("stages", {}).items() if "flops" in stage}
        if not stages:
            continue
        flops = [f"{stages[name]['flops'] / 1e9:.2f}" for name in _COUNTED]
        moved = [f"{sum(stage[kind] for stage in stages.values()) / 1e6:.1f}" for kind in _MOVED]
        rows.append([row["name"], *flops, *moved, _ms(row["least_ms"])])
    units = [f"{name} [GFLOP]" for name in _COUNTED] + [f"{name} [MB]" for name in _MOVED]
    return _table(["work of one step", *units, "least [ms]"], rows)


def steadiest(row: Mapping[str, Any]) -> tuple[float, float, str]:
    """Return median [ms] and ratio of a row by processor time, where the device is the processor, else by the clock."""
    if "cpu_p50_ms" in row:
        return row["cpu_p50_ms"], row["cpu_speedup"], ", processor time"
    return row["p50_ms"], row["speedup"], ""


def growth_table(results: Results) -> str:
    """Return the machine, and for each size the median of each way to run a step with its ratio to the plain one."""
    meta, rows = results["meta"], results["rows"]
    names = list(dict.fromkeys(row["name"] for row in rows))
    sizes: dict[tuple[int, int, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        sizes.setdefault((row["cameras"], row["tokens"], row["actions"]), {})[row["name"]] = row
    lines = []
    for size, ways in sizes.items():
        pairs = [steadiest(ways[name])[:2] for name in names]
        cells = [f"{_ms(duration_ms)} ({speedup:.2f})" for duration_ms, speedup in pairs]
        lines.append([*map(str, size), *cells])
    head = ["cameras", "visual tokens of each", "action dimensions", *(f"{name} [ms] (speedup)" for name in names)]
    words = (
        f"{meta['size']} on {meta['device']}, threads: {meta['threads']}, {meta['dtype']}, engine {meta['engine']}; "
        f"torch {meta['versions']['torch']}; {meta['rounds']} rounds; medians{steadiest(rows[0])[2]}."
    )
    return f"{words}\n\n{_table(head, lines)}"


def ics_table(results: Results) -> str:
    """Return for each way its time at some sizes, and how many of the tokens it keeps are the right ones."""
    rows, meta = results["rows"], results["meta"]
    policy = next((row for row in rows if row["policy_frames"]), None)
    sizes = sorted({(row["tokens"], row["width"]) for row in rows})
    own = (policy["tokens"], policy["width"]) if policy else sizes[0]
    shown = list(dict.fromkeys([sizes[0], own, *(size for size in sizes[-2:])]))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = {(row["tokens"], row["width"]): row for row in rows if row["name"] == name}
        kept = [f"{value:.3f}" for value in mine[own]["overlap_policy"]] or ["–"] * len(meta["kept"])
        least = min(min(values) for row in mine.values() for values in row["overlap"].values())
        lines.append([name, *(_ms(mine[size]["p50_ms"]) for size in shown), *kept, f"{least:.3f}"])
    ratios = [f"policy, {100 * ratio:g} % kept" for ratio in meta["kept"]]
    head = ["way", *(f"{count} x {width} [ms]" for count, width in shown), *ratios, "least of all drawn"]
    return f"{meta['device']}; torch {meta['versions']['torch']}.\n\n{_table(head, lines)}"


def engine_table(results: Results) -> str:
    """Return each kind of step in each variant, with its ratio to the first by processor time and by the clock."""
    meta, lines = results["meta"], []
    for row in results["rows"]:
        by_cpu = _ms(row["cpu_p50_ms"]), f"**{row['cpu_speedup']:.2f}**"
        by_clock = _ms(row["p50_ms"]), f"{row['speedup']:.2f}"
        lines.append([row["name"], row["variant"], *by_cpu, *by_clock, f"{row['first_s']:.1f}"])
    head = ["step", "variant", "processor time [ms]", "ratio", "clock [ms]", "ratio", "first steps [s]"]
    words = f"{meta['model']} on {meta['device']}; torch {meta['versions']['torch']}; {meta['rounds']} rounds; medians."
    return f"{words}\n\n{_table(head, lines)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _words(meta: Mapping[str, Any]) -> list[str]:
    """What the figures hold for, in sentences."""
    roofline, memory, versions = meta["roofline"], meta["memory"], meta["versions"]
    publish = meta["publish"]
    published = f"{publish['p50_ms']:.2f} ms" if "p50_ms" in publish else f"not measured ({publish['not_measured']})"
    lines = [
        f"{meta['model']} on {meta['device']}, {meta['cores']} cores, {meta['threads']} threads, {meta['dtype']}, "
        f"attention {meta['attention']}, engine {meta['engine']}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}; {meta['rounds']} rounds; "
        f"load average {meta['load'][0]:.1f} before and {meta['load'][1]:.1f} after.",
        f"Best rates in this run: {roofline['flops_per_s'] / 1e9:.0f} GFLOP/s in matrix products, "
        f"{roofline['copy_bytes_per_s'] / 1e9:.1f} GB/s in copies, {roofline['gemv_bytes_per_s'] / 1e9:.1f} GB/s in "
        f"matrix-vector products.",
        f"Gate: {meta['gate']['p50_ms']:.3f} ms (p95 {meta['gate']['p95_ms']:.3f}); publishing: {published}.",
        f"Dense tokens equal to those of generate in {meta['tokens_equal_plain']}.",
        f"Memory: peak {memory['peak_bytes'] / 2**20:.0f} MiB, {memory['growth_bytes'] / 2**20:+.1f} MiB over the last "
        f"{memory['steps']} steps.",
    ]
    return [*lines, meta["note"]] if meta["note"] else lines


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
