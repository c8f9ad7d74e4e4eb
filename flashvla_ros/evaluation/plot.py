"""Success against visual-token FLOPs, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.evaluation.markdown import Row, tables
from flashvla_ros.evaluation.summary import ALL, rates

_COLOURS = ("#346ba4", "#c8552d", "#388e3c", "#7b5aa6", "#8a6d1d")


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw evaluations into a picture of the kind that its suffix names: a panel for each of their tables.

    Raises:
        FlashVLAError: It cannot be written.
    """
    matplotlib.use("Agg")
    names = list(dict.fromkeys(result["meta"]["checkpoint"]["name"] for result in results))
    panels: dict[str, list[tuple[str, Row]]] = {}
    for result in results:
        for title, rows in tables(result["rows"]):
            totals = [(result["meta"]["checkpoint"]["name"], row) for row in rows if row["task"] == ALL]
            panels.setdefault(title, []).extend(totals)
    figure = Figure(figsize=(7.5, 4.2 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        for name, colour in zip(names, _COLOURS * len(names), strict=False):
            _points(axes, [row for other, row in panels[panel] if other == name], name, colour)
        axes.set(title=panel, xlabel="visual-token FLOPs, dense = 1", ylabel="success", ylim=(-0.03, 1.06))
        axes.set_xlim(0.0, 1.08)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise FlashVLAError(f"cannot write {path}: {error}") from error


def _points(axes: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    if not rows:
        return
    x = [row["visual_flops_ratio"] for row in rows]
    found = [rates(row) for row in rows]
    y = [rate.value for rate in found]
    low = [rate.value - rate.interval[0] for rate in found]
    high = [rate.interval[1] - rate.value for rate in found]
    axes.errorbar(x, y, yerr=[low, high], fmt="o", color=colour, capsize=3, label=name, alpha=0.85)
    for row, left, top in zip(rows, x, y, strict=True):
        axes.annotate(row["mode"], (left, top), xytext=(5, 5), textcoords="offset points", fontsize=7, color=colour)
