"""Tables of an evaluation, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.cli.results import MOST_BYTES
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import read_json
from flashvla_ros.evaluation.statistics import Paired, holm
from flashvla_ros.evaluation.summary import ALL, rates, suites_in
from flashvla_ros.sim.perturbation import NONE

Row = Mapping[str, Any]


def read_evaluation(file: Path) -> Mapping[str, Any]:
    """Read the JSON of one evaluation.

    Raises:
        FlashVLAError: It cannot be read or is no such file.
    """
    try:
        results: Mapping[str, Any] = read_json(file, most=MOST_BYTES)
        results["rows"][0]
        page([results])  # which needs all that is read of it elsewhere
    except (FlashVLAError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise FlashVLAError(f"{file} is no result of flashvla-ros eval ({error}): write it again") from error
    return results


def console(rows: Sequence[Row]) -> str:
    """Return the rows as lines of a terminal."""
    width, wide = (max(len(row[name]) for row in rows) for name in ("mode", "task"))
    lines = []
    for row in rows:
        parts = [
            f"{row['mode']:{width}s} {row['task']:{wide}s} {rates(row)!s:20s}",
            f"reuse {row['reuse_rate']:4.0%}",
            f"FLOPs {row['visual_flops_ratio']:.2f} visual, {row['flops_ratio']:.2f} in all",
            f"p50 {row['latency_p50_ms']:.0f} ms p95 {row['latency_p95_ms']:.0f} ms",
        ]
        if row["perturbation"] != NONE:
            parts.insert(0, f"{row['perturbation']:18s}")
        if "reaction_steps_max" in row:
            parts.append(f"reaction at most {row['reaction_steps_max']}")
        lines.append("  ".join(parts))
    return "\n".join(lines)


def page(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Return a page with the tables of each evaluation and what it was made with."""
    parts = []
    for results in evaluations:
        parts += [f"# Evaluation of `{results['meta']['checkpoint']['name']}`", provenance(results["meta"])]
        for name, rows in tables(results["rows"]):
            parts += [*([f"## {name}"] if name else []), success_table(rows), cost_table(rows)]
    return "\n\n".join(parts) + "\n"


def tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield the rows of each table under its name: one for each perturbation, and for each of several LIBERO suites.

    Without either the name is empty.
    """
    for perturbation in dict.fromkeys(row["perturbation"] for row in rows):
        name = "" if perturbation == NONE else perturbation
        chosen = [row for row in rows if row["perturbation"] == perturbation]
        suites = suites_in(row["task"] for row in chosen)
        if len(suites) < 2:
            yield name, chosen
            continue
        for suite in suites:
            of_suite = [row for row in chosen if row["task"].partition("/")[0] == suite]
            renamed = [{**row, "task": ALL} if row["task"] == suite else row for row in of_suite]
            yield f"{suite} {name}".rstrip(), renamed


def provenance(meta: Mapping[str, Any]) -> str:
    """Return what a table was made with, as a paragraph and the command."""
    checkpoint, (first, last) = meta["checkpoint"], meta["seeds"]
    timing = "free-running with the latency that was measured" if meta["free_running"] else "lock-step"
    return (
        f"Checkpoint `{checkpoint['name']}` ({checkpoint['sha256'][:12]}, {checkpoint['visual_tokens']} tokens), "
        f"seeds {first} to {last} of each task, {timing}, on {meta['device']}; {origins(meta)}"
        f"torch {meta['versions'].get('torch', '?')}, flashvla_ros {meta['versions']['flashvla_ros']}.\n\n"
        f"    {meta['command']}"
    )


def origins(meta: Mapping[str, Any]) -> str:
    """Return how many episodes are of other code and of earlier runs; empty for none, and for a file without it."""
    words = {"other_code": "other code", "from_ledger": "earlier runs"}
    counts = ((meta.get(name), source) for name, source in words.items())
    return "".join(f"{n} of {sum(meta['codes'].values())} episodes from {source}; " for n, source in counts if n)


def success_table(rows: Sequence[Row]) -> str:
    """Return successes with 95 % Wilson intervals, modes down and tasks across, and what dense alone lost and won.

    The difference is in points of success, with Tango's 95 % interval; McNemar's p is adjusted by Holm's rule for the
    number of modes in the table.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows if row["task"] != ALL))
    heads = ["mode", *tasks, "all tasks", "against `dense`: lost / won", "difference", "p"]
    lines, adjusted = [], adjusted_p(rows)
    for mode in dict.fromkeys(row["mode"] for row in rows):
        by_task = {row["task"]: row for row in rows if row["mode"] == mode}
        total = by_task[ALL]
        found = [by_task.get(task) for task in tasks]
        cells = [f"{row['successes']}/{row['episodes']}" if row else "" for row in found]
        compared = ["", "", ""]
        if mode in adjusted:
            pair = Paired(total["lost"], total["won"])
            value, low, high = (100.0 * share for share in pair.difference(total["episodes"]))
            compared = [f"{pair.lost} / {pair.won}", f"{value:+.1f} [{low:+.1f}, {high:+.1f}]", f"{adjusted[mode]:.3g}"]
        lines.append([f"`{mode}`", *cells, f"{rates(total)}", *compared])
    return table(heads, lines)


def adjusted_p(rows: Sequence[Row]) -> dict[str, float]:
    """Return each mode's McNemar p against dense over all tasks, adjusted for the number of modes."""
    totals = {row["mode"]: row["mcnemar_p"] for row in rows if row["task"] == ALL and "lost" in row}
    return dict(zip(totals, holm(list(totals.values())), strict=True))


def cost_table(rows: Sequence[Row]) -> str:
    """Return what each mode costs over all tasks, and how fast it looks at a change where there was one."""
    totals = [row for row in rows if row["task"] == ALL]
    columns: dict[str, Callable[[Row], str]] = {
        "mode": lambda row: f"`{row['mode']}`",
        "steps reused": lambda row: f"{row['reuse_rate']:.1%}",
        "visual FLOPs": lambda row: f"{row['visual_flops_ratio']:.3f}",
        "FLOPs end to end": lambda row: f"{row['flops_ratio']:.3f}",
        "p50 [ms]": lambda row: f"{row['latency_p50_ms']:.1f}",
        "p95 [ms]": lambda row: f"{row['latency_p95_ms']:.1f}",
        "mean [ms]": lambda row: f"{row['latency_mean_ms']:.1f}",
        "model [ms]": lambda row: f"{row['inference_p50_ms']:.1f}",
    }
    if any("reaction_steps_max" in row for row in totals):
        columns |= {
            "reaction: max": lambda row: str(row.get("reaction_steps_max", "")),
            "mean": lambda row: f"{row['reaction_steps_mean']:.2f}" if "changes" in row else "",
            "later than at once": lambda row: (
                f"{row['reactions_late']} of {row['changes']}" if "changes" in row else ""
            ),
        }
    return table(list(columns), [[column(row) for column in columns.values()] for row in totals])


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
