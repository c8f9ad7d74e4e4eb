"""What OpenVLA-7B's shapes are meant to reach on one H200 in bfloat16, against what a run found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flashvla_ros.bench.configurations import DENSE, draft_name, paper_name

Rows = Mapping[str, Mapping[str, Any]]  # by name


class Aim(NamedTuple):
    """One aim.

    Attributes:
        text: In words.
        value: What a run found; KeyError where it did not measure it.
        bound: What it should reach.
        least: Whether the bound is the least value, not the greatest.
    """

    text: str
    value: Callable[[Rows], float]
    bound: float
    least: bool


_MODE = "guarded gate"

AIMS = (
    Aim("no reuse, no pruning: times faster than plain generate", lambda rows: rows[DENSE]["speedup"], 4.0, True),
    Aim("the same: times the least that the roofline allows", lambda rows: rows[DENSE]["over_least"], 1.25, False),
    Aim("scoring by ICS [ms]", lambda rows: rows[paper_name(256)]["stages"]["scoring"]["p50_ms"], 0.3, False),
    Aim(
        "an accepted draft: share of a full step",
        lambda rows: rows[draft_name(DENSE, 1)]["p50_ms"] / rows[DENSE]["p50_ms"],
        0.5,
        False,
    ),
    Aim(
        "mean step over the trace with the gate on: times faster than plain generate",
        lambda rows: max(row["speedup"] for name, row in rows.items() if name.startswith(_MODE)),
        8.0,
        True,
    ),
)


def apply_to(meta: Mapping[str, Any]) -> bool:
    """Return whether the aims are meant for such a run."""
    return meta["model"] == "7b" and meta["dtype"] == "bfloat16" and "cuda" in meta["versions"]


def verdicts(rows: Rows) -> list[tuple[str, str, str, str]]:
    """Return each aim in words, its bound, what was found, and by how much it was missed."""
    lines = []
    for aim in AIMS:
        bound = f"{'at least' if aim.least else 'at most'} {aim.bound:g}"
        try:
            value = aim.value(rows)
        except (KeyError, ValueError):  # the run left it out
            lines.append((aim.text, bound, "–", "not measured"))
            continue
        met = value >= aim.bound if aim.least else value <= aim.bound
        missed = f"missed by {abs(value / aim.bound - 1):.0%}"
        lines.append((aim.text, bound, f"{value:.2f}", "met" if met else missed))
    return lines
