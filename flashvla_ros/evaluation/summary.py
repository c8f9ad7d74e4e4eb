"""From episodes to the rows of a table: for each perturbation and mode a row a task, a LIBERO suite, and over all."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flashvla_ros.evaluation.jobs import Record
from flashvla_ros.evaluation.statistics import Paired, Rate
from flashvla_ros.sim.libero.protocol import is_libero

ALL = "all"
DENSE = "dense"


@dataclasses.dataclass(frozen=True)
class Cell:
    """The episodes of one mode on one task under one perturbation; seeds come in the same order in every cell."""

    mode: str
    task: str
    perturbation: str
    seeds: Sequence[int]
    records: Sequence[Record]
    total: bool = False  # of several tasks


def table_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the rows in the order of the cells, each mode's totals behind its tasks."""
    by_name = {(cell.perturbation, cell.mode, cell.task): cell for cell in _with_totals(cells)}
    rows = []
    for (perturbation, mode, task), cell in by_name.items():
        row = _row(cell)
        dense = by_name.get((perturbation, DENSE, task))
        if dense is not None and mode != DENSE:
            row |= _against(dense, cell)
        rows.append(row)
    return rows


def suites_in(tasks: Iterable[str]) -> list[str]:
    """Return the suites of tasks of LIBERO, in their order: a total over several would be of no benchmark."""
    return list(dict.fromkeys(task.partition("/")[0] for task in tasks if is_libero(task)))


def _with_totals(cells: Sequence[Cell]) -> list[Cell]:
    groups: dict[tuple[str, str], list[Cell]] = collections.defaultdict(list)
    for cell in cells:
        groups[cell.perturbation, cell.mode].append(cell)
    result = []
    for group in groups.values():
        result += group
        suites = suites_in(cell.task for cell in group)
        for suite in suites if len(suites) > 1 else ():
            result.append(_total([cell for cell in group if cell.task.startswith(f"{suite}/")], suite))
        result.append(_total(group, ALL))
    return result


def _total(cells: Sequence[Cell], name: str) -> Cell:
    seeds = [seed for cell in cells for seed in cell.seeds]
    records = [record for cell in cells for record in cell.records]
    return dataclasses.replace(cells[0], task=name, seeds=seeds, records=records, total=True)


def _row(cell: Cell) -> dict[str, Any]:
    records = cell.records
    rate = Rate(sum(record.success for record in records), len(records))
    control_steps = sum(record.control_steps for record in records)
    latencies = np.concatenate([record.latencies_ms for record in records])
    fresh = np.concatenate([record.fresh_latencies_ms for record in records])
    reasons = sum((collections.Counter(record.reasons) for record in records), collections.Counter())
    row = {
        "mode": cell.mode,
        "task": cell.task,
        "perturbation": cell.perturbation,
        "episodes": rate.trials,
        "successes": rate.successes,
        "wilson_95": [round(end, 4) for end in rate.interval],
        "steps_median": float(np.median([record.steps for record in records])),
        "reuse_rate": round(sum(record.reused for record in records) / control_steps, 4),
        "visual_flops_ratio": round(sum(record.visual_flops for record in records) / control_steps, 4),
        "flops_ratio": round(sum(record.flops for record in records) / control_steps, 4),
        "latency_p50_ms": round(float(np.quantile(latencies, 0.5)), 2),
        "latency_p95_ms": round(float(np.quantile(latencies, 0.95)), 2),
        "latency_mean_ms": round(float(latencies.mean()), 2),
        "inference_p50_ms": round(float(np.quantile(fresh, 0.5)), 2),
        "reasons": dict(sorted(reasons.items())),
    }
    if not cell.total:
        row["seed"] = cell.seeds[0]
        row["failed_seeds"] = [seed for seed, record in zip(cell.seeds, records, strict=True) if not record.success]
    return row | _reaction(cell)


def _reaction(cell: Cell) -> dict[str, Any]:
    """How long it took to look at the world again; nothing where no episode has an instant of change."""
    reactions = [(seed, record.reaction_steps) for seed, record in zip(cell.seeds, cell.records, strict=True)]
    steps = [step for _, step in reactions if step is not None]
    if not steps:
        return {}
    row: dict[str, Any] = {
        "changes": len(steps),
        "reaction_steps_max": max(steps),
        "reaction_steps_mean": round(float(np.mean(steps)), 3),
        "reactions_late": sum(step > 0 for step in steps),
    }
    if not cell.total:
        row["late_seeds"] = sorted(seed for seed, step in reactions if step)
    return row


def _against(dense: Cell, cell: Cell) -> dict[str, Any]:
    """Compare with the dense model, episode by episode."""
    compared = Paired.of(*([record.success for record in one.records] for one in (dense, cell)))
    return {"lost": compared.lost, "won": compared.won, "mcnemar_p": compared.mcnemar_p}


def rates(row: Mapping[str, Any]) -> Rate:
    """Return a row's successes with their interval."""
    return Rate(row["successes"], row["episodes"])
