"""``flashvla-ros bench``: what a step costs, against the plain model and other pruners, timed in turn in one run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashvla_ros.bench.trace import DEFAULT_TRACE
from flashvla_ros.cli.counts import positive
from flashvla_ros.cli.exits import EXIT_DIFFERENT
from flashvla_ros.cli.results import read_results, write_results
from flashvla_ros.core.errors import FlashVLAError

STAGES = ("preprocess", "vision", "prefill", "scoring", "decode", "generate")
_COLOURS = dict(zip(STAGES, ("#999", "#4477aa", "#66ccee", "#ee6677", "#228833", "#ccbb44"), strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``bench``."""
    parser.add_argument(
        "--model",
        help="demo, random weights of size tiny, mid or 7b, or a folder (the recorded one with --bag, or demo)",
    )
    parser.add_argument("--rounds", type=positive, default=10, metavar="N", help="timed rounds (%(default)s)")
    parser.add_argument("--seconds", type=positive, default=0, metavar="S", help="begin no round after this time")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="configurations such as 'ics*'")
    parser.add_argument("--trace", type=Path, default=DEFAULT_TRACE, metavar="FILE", help="decisions to mix by (CSV)")
    parser.add_argument("--device", help="torch device (auto)")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--attention", help="auto, flash_attention_2, sdpa or eager")
    parser.add_argument("--engine", help="auto, eager, static or compiled")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (torch's default)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another parameter")
    parser.add_argument("--note", default="", metavar="TEXT", help="about this machine, for the page of results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them")
    parser.add_argument(
        "--certify", type=positive, metavar="N", help="time nothing: hold the engine to the reference on N frames"
    )
    parser.add_argument("--bag", type=Path, metavar="BAG", help="whose frames and settings (the package's own frames)")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: take the results of an earlier run")


def run(args: argparse.Namespace) -> int:
    """Measure, certify or read, print a table or a line, write what was asked for; exit code 1 for another answer."""
    if args.certify:
        from flashvla_ros.bench.certify import certify, line

        results = certify(args)
        print(line(results))
        if args.json is not None:
            write_results(args.json, results["meta"], results["rows"])
        return 0 if results["meta"]["equal"] else EXIT_DIFFERENT
    if args.bag is not None:
        raise FlashVLAError("--bag says whose frames --certify takes; without it nothing looks at a bag")
    if args.plot is not None:
        import matplotlib  # noqa: F401  # now: it may be missing, and minutes of measuring be lost
    if args.read is not None:
        results = read_results(args.read)
        try:
            text(results)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # such as those of eval, or of --certify
            raise FlashVLAError(f"{args.read} holds no times that flashvla-ros bench measured ({error!r})") from error
    else:
        from flashvla_ros.bench.run import Session

        args.model = args.model or "demo"
        results = Session(args).run()

    print(text(results))
    if args.json is not None:
        write_results(args.json, results["meta"], results["rows"])
    if args.plot is not None:
        draw(results, args.plot)
    return 0


def text(results: Mapping[str, Any]) -> str:
    """Return a table of times and ratios, aligned."""
    rows = [("configuration", "p50 ms", "p95 ms", "speedup", "95 % interval")]
    for row in results["rows"]:
        low, high = row["speedup_95"]
        times = ms(row["p50_ms"]), ms(row["p95_ms"])
        rows.append((row["name"], *times, f"{row['speedup']:.2f}", f"{low:.2f}-{high:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows]
    return "\n".join([*lines, "", *words(results["meta"])])


def words(meta: Mapping[str, Any]) -> list[str]:
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
        f"Dense tokens equal to those of the plain model in {meta['tokens_equal_plain']}.",
        f"Memory: peak {memory['peak_bytes'] / 2**20:.0f} MiB, {memory['growth_bytes'] / 2**20:+.1f} MiB over the last "
        f"{memory['steps']} steps.",
    ]
    return [*lines, meta["note"]] if meta["note"] else lines


def ms(value: float) -> str:
    """Return milliseconds with three digits."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


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
