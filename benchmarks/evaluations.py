"""Tables of evaluations, section by section, for :mod:`benchmarks.report`.

A file's name up to its first hyphen says which section it belongs to: ``main-plain.json``, ``pruners-demo.json``. A
section is there when one of its files is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.evaluation import markdown
from flashvla_ros.evaluation.markdown import Row, read_evaluation
from flashvla_ros.evaluation.open_loop import OPEN_LOOP
from flashvla_ros.evaluation.statistics import Paired, holm
from flashvla_ros.evaluation.summary import ALL, DENSE, rates

INTRODUCTION = """Closed loop in the simulated robot, seeds that training has never seen. The episode is the
unit: rates come with 95 % Wilson intervals, and a mode is compared with `dense` on the same seeds: the difference in
points with Tango's 95 % interval, and McNemar's exact p, adjusted by Holm's rule for all p of its table.
FLOPs are multiples of the dense model's over the same control steps; a reused step costs none. Latency is that of a
control step, reused ones included; `model` is the median of the steps that ran the model."""
_SECTIONS = {
    "main": (
        "Success and cost",
        "`prune` is FlashVLA's pruning (62.5 % of the visual tokens from layer 2 on) without a gate, `paper` all of it "
        "as published, `guarded` the shipped defaults, `deep` half of the tokens from layer 1 on.",
    ),
    "libero": (
        "LIBERO",
        "A policy of 2 million parameters with 256 visual tokens, trained here for libero_object on cheap pictures. "
        "The official states hardly vary, as `open_loop` shows: it plays one dense episode again, without looking. In "
        "permuted ones objects swap their places. FlashVLA's own figures are of OpenVLA-7B on the official states of "
        "four suites: success 74.4 % dense, 73.7 % with 160 of 256 tokens from layer 2 on and reuse; 55.7 % fewer "
        "visual FLOPs, 36.0 % less latency. The settings of `paper` are those. FLOPs are counted as there, but in a "
        "decoder of 4 layers, where half of them come before the pruning, not of 32. Success and latency are another "
        "model's and do not compare.",
    ),
    "ablation": (
        "Gate and pruning apart",
        "`guarded` with its gate off prunes alone, `gate` reuses alone, without dropping a token.",
    ),
    "pruners": (
        "Pruning methods side by side",
        "The same budget and layer, no gate. `prune` is ICS; `random` and `norm` are the controls that it has to beat.",
    ),
    "budgets": ("How many tokens", "ICS and random tokens, by the share that is kept from layer 2 on."),
    "layers": ("From which layer on", "62.5 % of the tokens, by the first decoder layer that sees no more."),
    "perturbations": (
        "When the world changes",
        "Reaction is counted in steps from the first image that shows the change to the first one that the model was "
        "run on: 0 means that no action was reused across the change.",
    ),
    "freerunning": ("With real latency", "The robot goes on while the model thinks."),
    "selection": (
        "How a setting was chosen",
        "On seeds from 10⁹ on, where training draws its own: these rates chose a setting and prove nothing of it.",
    ),
}
_COMPARED = {"pruners": ("random", "prune"), "perturbations": ()}


def sections(files: Sequence[Path]) -> Iterator[str]:
    """Yield the paragraphs and tables of evaluations.

    Raises:
        FlashVLAError: A file is no result of an evaluation, or its name is of no section.
    """
    by_section: dict[str, list[Path]] = {}
    for file in files:
        by_section.setdefault(file.stem.partition("-")[0], []).append(file)
    if unknown := [str(file) for name, found in by_section.items() if name not in _SECTIONS for file in found]:
        raise FlashVLAError(
            f"{', '.join(unknown)} belongs to no section: names start with {', '.join(_SECTIONS)} and a hyphen"
        )
    for name, (title, text) in _SECTIONS.items():
        if found := by_section.get(name):
            yield from (f"## {title}", text)
            for file in found:
                yield from _evaluation(name, file, read_evaluation(file))


def _evaluation(section: str, file: Path, results: Mapping[str, Any]) -> list[str]:
    meta, rows = results["meta"], results["rows"]
    parts = [f"### `{meta['checkpoint']['name']}`", f"{markdown.provenance(meta)}\n\nFrom `{file.name}`."]
    for name, chosen in markdown.tables(rows):
        if name or section == "perturbations":
            parts.append(f"#### {name or 'undisturbed'}")
        parts.append(markdown.success_table(chosen))
        if compared := _compared(section, chosen):
            parts.append(compared)
        parts.append(markdown.cost_table(chosen))
        if section in ("main", "libero"):
            parts.append(_statement(chosen))
    return parts


def _statement(rows: Sequence[Row]) -> str:
    """Say in words what the main table shows of each mode."""
    totals = {row["mode"]: row for row in rows if row["task"] == ALL}
    lines, adjusted = [], markdown.adjusted_p(rows)
    for mode, row in totals.items():
        if mode in (DENSE, OPEN_LOOP) or DENSE not in totals:
            continue
        p = adjusted[mode]
        verdict = "measurably below" if p < 0.05 and row["lost"] > row["won"] else "not measurably below"
        lines.append(
            f"- `{mode}`: {1 - row['visual_flops_ratio']:.1%} fewer visual-token FLOPs, {1 - row['flops_ratio']:.1%} "
            f"fewer end to end; success {rates(row)} against {rates(totals[DENSE])}, {verdict} dense "
            f"(p = {p:.2g})."
        )
    return "\n".join(lines)


def _compared(section: str, rows: Sequence[Row]) -> str:
    """Compare every mode with the section's controls, seed by seed."""
    controls = [name for name in _COMPARED.get(section, ()) if any(row["mode"] == name for row in rows)]
    won = {mode: _successes(rows, mode) for mode in dict.fromkeys(row["mode"] for row in rows)}
    cells = [(mode, control) for mode in won for control in controls if mode != control]
    pairs = {(mode, control): Paired.of(won[control], won[mode]) for mode, control in cells}
    adjusted = dict(zip(pairs, holm([pair.mcnemar_p for pair in pairs.values()]), strict=True))
    words = {key: f"{pair.lost} / {pair.won}, p = {adjusted[key]:.2g}" for key, pair in pairs.items()}
    lines = [[f"`{mode}`", *(words.get((mode, control), "") for control in controls)] for mode in won]
    heads = ["lost / won against", *(f"`{name}`" for name in controls)]
    return markdown.table(heads, lines) if controls else ""


def _successes(rows: Sequence[Row], mode: str) -> list[bool]:
    """Return whether each episode of a mode succeeded, in an order that all modes share."""
    found = []
    for row in rows:
        if row["mode"] == mode and row["task"] != ALL:
            failed = set(row["failed_seeds"])
            first = row["seed"]
            found += [seed not in failed for seed in range(first, first + row["episodes"])]
    return found
