"""Write ``benchmarks/RESULTS.md``: every table, from the JSON files in ``benchmarks/results``.

``python -m benchmarks.report`` takes every file there; its name up to the first hyphen says which section shows it. So
no figure on that page was typed, and a new file needs no change here. A picture beside a file, of the same name, is
shown below its table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import (
    abuse,
    calibration,
    changes,
    closed_loop,
    droid_faults,
    engine,
    evaluations,
    gate,
    growth,
    guard,
    guard_episodes,
    guard_fuzz,
    guard_trials,
    hazards,
    ics,
    overhead,
    score,
    serving,
    shift,
    soak,
    speed,
)
from benchmarks.rivals import page as rivals
from benchmarks.tables import table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import read_results
from flashvla_ros.core.errors import FlashVLAError

FOLDER = Path(__file__).parent
_HEAD = """# Results

<!-- Written by `python -m benchmarks.report` from the files in results/. Do not edit. -->

Each table names the file that it comes from. [README.md](README.md) has the command that makes each file, and
[evaluation.md](../docs/evaluation.md) defines modes, perturbations and columns."""
_PICTURE = "![Success against visual-token FLOPs, with 95 % intervals](../docs/images/results.png)"


def fuzz(results: Mapping[str, Any]) -> str:
    """Return the counts of a fuzz of gate and safety, none of whose steps broke a rule."""
    (row,) = results["rows"]
    counts = {name: row[name] for name in ("runs", "steps", "refused", "reused", "clamped")}
    reasons = table(["reason", "steps"], [[f"`{name}`", str(number)] for name, number in row["reasons"].items()])
    return f"{', '.join(f'{name} {number}' for name, number in counts.items())}; no rule was broken.\n\n{reasons}"


def certify(results: Mapping[str, Any]) -> str:
    """Return what every candidate came to, from the safest on; the last that is certified has the certificate."""
    made, lines = results["meta"], []
    for row in results["rows"]:
        verdict = "yes" if row["certified"] else "no"
        counts = f"{row['induced']} of {row['played']}", f"{row['bound']:.1%}", f"{row['reuse_rate']:.0%}"
        lines.append([f"`{row['candidate']}`", verdict, *counts, str(row["episodes"]), str(row["paired_design"])])
    head = ["candidate", "certified", "induced failures", "at most", "reuse", "episodes", "in a fixed paired design"]
    about = f"`{made['checkpoint']['name']}` on {made['device']}, seeds {made['seeds'][0]} to {made['seeds'][1]}"
    return f"{about}; risk {made['risk']:g}, confidence {made['confidence']:g}.\n\n{table(head, lines)}"


def mutation(results: Mapping[str, Any]) -> str:
    """Return how many changes of the code were noticed, and each that was not."""
    rows = results["rows"]
    drawn, killed, same = (sum(row[name] for row in rows) for name in ("drawn", "killed", "equivalent"))
    shares = [[row["room"], *(str(row[name]) for name in ("mutants", "drawn", "killed", "equivalent"))] for row in rows]
    alive = [
        [f"`{one['place']}`", one["change"], f"{'equivalent: ' if one['equivalent'] else ''}{one['why']}"]
        for row in rows
        for one in row["survivors"]
    ]
    return (
        f"{killed} of {drawn - same} that are not equivalent were noticed ({killed / (drawn - same):.1%}); "
        f"of all {drawn} it was {results['meta']['killed_before']} before the tests that this run asked for.\n\n"
        f"{table(['room', 'mutants', 'drawn', 'killed', 'equivalent'], shares)}\n\n"
        f"{table(['survivor', 'change', 'why'], alive)}"
    )


SECTIONS: Mapping[str, tuple[str, str, Callable[[Mapping[str, Any]], str]]] = {
    "speed": (
        "Speed of a step",
        "Every configuration is timed once in each round, in turn. *Speedup* is the ratio of the plain model's time to "
        "a configuration's, paired by round: the median and its 95 % bootstrap interval. *Least* is the time below "
        "which no implementation can stay on the device, by its best rates. The steps *gate* are the mean step of a "
        "recorded run.",
        speed.page,
    ),
    "growth": ("How the cost grows", "Random weights; more visual tokens, cameras or action dimensions.", growth.page),
    "engine": (
        "Engine, type, threads and memory format on a CPU",
        "Ratios are to the first variant. *First steps* is what the first step of each kind took together.",
        engine.page,
    ),
    "rivals": (
        "Ours and the field's rules",
        "In closed loop, paired on the same seeds, with 95 % Wilson intervals and McNemar's exact p; FLOPs as "
        "multiples of dense. *model* is the median step that runs the model, *step* the mean of all: processor "
        "time, in turn in one run. `dense` to `guarded` are ours. What of a rule is published and what is not "
        "stands in its file in `benchmarks/rivals/`.",
        rivals.page,
    ),
    "changes": (
        "A step around a change of budget or instruction",
        "Each of the ten steps after a change as a multiple of the median of the later ones; *start* is the control.",
        changes.page,
    ),
    "ics": ("What the information contribution score costs", "One score of all visual tokens.", ics.page),
    "gate": (
        "The gate: its cost, and what its scene guard sees",
        "A reused step is everything but the model. In brackets are 95 % Wilson intervals; steps of one episode are "
        "not independent, so the true spread is wider.",
        gate.page,
    ),
    "calibration": (
        "Does online calibration hold its bound?",
        "Simulated streams of known risk through the gate's own controller; after a shift the world is three times as "
        "hard. *Unsafe claims* are runs that certified a level whose risk exceeds ε before the shift.",
        calibration.page,
    ),
    "closed_loop": (
        "Does one ε serve every token budget?",
        "The same scenes one after another, from a cold start. *Off* is what was executed: the model is asked at every "
        "reused step too, for the count alone. `coin` compares λ with a random number. Differences are of paired "
        "episodes, with Tango's intervals and McNemar's p, adjusted for the number of cells (Holm).",
        closed_loop.page,
    ),
    "shift": (
        "How fast does the gate notice that the world has changed?",
        "*During* a shift calibration goes on from what it learnt *before*; *after* it everything is as it was.",
        shift.page,
    ),
    "certify": (
        "Which settings are certified?",
        "A candidate that cannot be certified any more ends early; the first that is not certified ends all.",
        certify,
    ),
    "score": (
        "What predicts that a reuse will be off?",
        "Episodes without a gate, 75 % of the tokens, in lock-step; what is known before the model runs, alone and in "
        "a logistic model that has seen no episode of the task. Reuse is what may be reused until 5 % of all steps are "
        "off. *tokens* are probability and margin of the last fresh action's tokens. *shipped* is `calibration.score`; "
        "the other policy has played the same tasks. With learning on, the steps of a task before this one have been "
        "seen, all of them.",
        score.page,
    ),
    "overhead": ("What ROS adds to a model", "The parts are those of `benchmarks/overhead.py`.", overhead.page),
    "serving": ("One model for many robots, or one each", "Without a gate, over openpi's protocol.", serving.page),
    "fuzz": ("Fuzzing of gate and safety", "Steps by the reason that the gate gave.", fuzz),
    "mutation": (
        "Do tests notice a change of the code?",
        "Small changes by mutmut, drawn at random; changes of an error's words alone are not drawn. Where the tests of "
        "the room do not reach a mutant, those of the room that does were run.",
        mutation,
    ),
    "guard": ("What the guard costs", "From one command's publication to the next process's.", guard.page),
    "guard_episodes": (
        "Does the guard change what the robot does?",
        "The same scenes over DDS in real time, all six tasks, with 95 % Wilson intervals.",
        guard_episodes.page,
    ),
    "guard_fuzz": ("Fuzzing of the guard's rules", "Stops by their cause.", guard_fuzz.page),
    "guard_trials": (
        "Faults injected behind the guard",
        "*Late* counts from the moment at which the stop is due.",
        guard_trials.page,
    ),
    "hazards": (
        "Every hazard of the safety case, again and again",
        "Each test holds the reaction to its bound; a failure is counted, not explained.",
        hazards.page,
    ),
    "droid_faults": (
        "Faults in real actions",
        "DROID's actions with synthetic faults, judged by the guard's rules. The published supervisor's bound was "
        "chosen on the evaluated part, as in the rows *scaled*.",
        droid_faults.page,
    ),
    "abuse": (
        "Everything at random",
        "The promises are those of `benchmarks/promises.py`; each broken one is in the file, with what went before it.",
        abuse.page,
    ),
    "soak": ("The demo for an hour", "Parameters change at random all the time.", soak.page),
}


def compose(folder: Path) -> str:
    """Return the page of all files in `folder`.

    Raises:
        FlashVLAError: A file cannot be read, or belongs to no section.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FlashVLAError(f"{folder} holds no results: README.md beside it says how to make them")
    parts = [_HEAD]
    if played := [file for file in files if _section(file) not in SECTIONS]:
        parts += [evaluations.INTRODUCTION, _PICTURE, *evaluations.sections(played)]
    for name, (title, text, page) in SECTIONS.items():
        if chosen := [file for file in files if _section(file) == name]:
            parts += [f"## {title}", text]
        for file in chosen:
            parts += [f"### `{file.name}`", page(read_results(file))]
            if file.with_suffix(".png").exists():
                parts.append(f"![{title}]({folder.name}/{file.stem}.png)")
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(file: Path) -> str:
    return file.stem.partition("-")[0]


def main() -> int:
    """Rewrite the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    page = FOLDER / "RESULTS.md"
    return exit_code(lambda: page.write_text(compose(FOLDER / "results"), encoding="utf-8"))


if __name__ == "__main__":
    raise SystemExit(main())
