"""Picture of a run of ``flashvla-ros bench``: where each step's time goes, and how much faster than the plain model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flashvla_ros.bench.tables import STAGES
from flashvla_ros.core.errors import FlashVLAError

_COLOURS = dict(zip(STAGES, ("#999", "#4477aa", "#66ccee", "#ee6677", "#228833", "#ccbb44"), strict=True))


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a picture.

    Raises:
        FlashVLAError: The file cannot be written, or its ending names no kind of picture.
    """
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
