"""Turn a finished run into a checkpoint folder with a model card: ``python -m flashvla_ros.train.publish``.

Every figure on the card is read from the run's own files and from the evaluations' JSON; none is typed in.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flashvla_ros.bench.statistics import Rate
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.train.fit import CHECKPOINT, DESCRIPTION, LOG, OPTIONS
from flashvla_ros.train.trainer import FitConfig
from flashvla_ros.vla.checkpoint import load_config

EVALUATION = "evaluation.json"

CARD = """---
license: apache-2.0
pipeline_tag: robotics
---
# Demo policy of flashvla_ros

A small vision-language-action policy in OpenVLA's architecture and Hugging Face layout (DINOv2 with registers and
SigLIP, projector, Llama decoder, 256-edge action tokens), trained from scratch by imitation of Meta-World's scripted
experts. It is for demonstrations and tests of `flashvla_ros`: it knows one simulated robot, one camera and these
instructions:

{instructions}

| | |
|---|---|
| parameters | {parameters:,} |
| image, visual tokens | {image} px square, {tokens} |
| action | dx, dy, dz in metres over 0.1 s within ±0.01 m, gripper from -1 (open) to 1 (closed); `unnorm_key` {key} |
| data | {frames:,} frames of {episodes} expert episodes, noise on what was executed; scenes drawn from 10⁹ on |
| training | {steps} steps of {batch} frames, {minutes:.0f} min on {device}, torch {torch} |
| loss on held-out episodes | {action:.3f} nats above the targets' entropy; positions {state:.2%} of their variance |

## Success in closed loop

Lock-step, seeds counted from {seed}, which training never saw; 95 % Wilson intervals. `dense` has gate and pruning
off. The other modes keep {keep:.1%} of the visual tokens from layer {layer} on, by the named rule without the gate;
`guarded` is the default, which prunes by ICS and has the guarded gate. Episodes under *then* begin with the scene's
other instruction and change it on the way.

{table}

## Made with

    {commands}

{note}
"""

COMMANDS = """python -m flashvla_ros.train.collect --out DATA --tasks {tasks} --episodes {episodes} --seed {data_seed}
    python -m flashvla_ros.train.fit --data DATA --out RUN --seed {seed} {options}
    {evaluations}
    python -m flashvla_ros.train.publish --run RUN --evaluations EVAL-* --out models/demo"""


def publish(run: Path, evaluations: list[Path], out: Path, note: str = "") -> None:
    """Copy the checkpoint of `run` to `out` and write its card and the evaluations' rows beside it."""
    card = model_card(run, evaluations, note)
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted((run / CHECKPOINT).iterdir()):
        shutil.copyfile(path, out / path.name)
    (out / "README.md").write_text(card, encoding="utf-8")
    results = [_read(path) for path in evaluations]
    combined = {"meta": results[0]["meta"], "rows": [row for result in results for row in result["rows"]]}
    (out / EVALUATION).write_text(json.dumps(combined, indent=2) + "\n", encoding="utf-8")


def model_card(run: Path, evaluations: list[Path], note: str = "") -> str:
    """Return the card's text.

    Raises:
        FlashVLAError: A file is missing or the run is not finished.
    """
    description = _read(run / DESCRIPTION)
    config, data = description["config"], description["data"]
    last = json.loads((run / LOG).read_text(encoding="utf-8").splitlines()[-1])
    if last["step"] < config["steps"]:
        raise FlashVLAError(f"{run} stopped at step {last['step']} of {config['steps']}: finish it with --resume first")
    results = [_read(path) for path in evaluations]
    rows = [row for result in results for row in result["rows"]]
    model = load_config(run / CHECKPOINT)
    keep, layer = results[0]["meta"]["keep_ratio"], results[0]["meta"]["layer"]
    values = {"tasks": " ".join(data["tasks"]), "episodes": description["episodes_per_task"], "data_seed": data["seed"]}
    return (
        CARD.format(
            instructions="\n".join(f"- `{line}`" for line in data["instructions"]),
            parameters=description["parameters"],
            image=model.towers[0].image_size,
            tokens=model.visual_tokens,
            key="`" + "`, `".join(model.norm_stats) + "`",
            frames=description["frames"],
            episodes=description["episodes"],
            steps=config["steps"],
            batch=config["batch"],
            minutes=last["seconds"] / 60,
            device=description["device"],
            torch=description["torch"],
            action=last["validation"]["action"],
            state=last["validation"]["state"],
            seed=results[0]["meta"]["seeds"][0],
            keep=keep,
            layer=layer,
            table=results_table(rows),
            commands=COMMANDS.format(
                **values, seed=config["seed"], options=_options(config), evaluations=_evaluation_commands(rows)
            ),
            note=note,
        ).rstrip()
        + "\n"
    )


def _options(config: dict[str, Any]) -> str:
    """The options of a training run that are not the defaults, and its number of steps."""
    default = dataclasses.asdict(FitConfig())
    changed = [name for name in OPTIONS if name == "steps" or (name != "seed" and config[name] != default[name])]
    return " ".join(f"--{name.replace('_', '-')} {config[name]}" for name in changed)


def _evaluation_commands(rows: list[dict[str, Any]]) -> str:
    """The commands that play the episodes of `rows`, one for each kind of episode."""
    groups: dict[tuple[bool, int], list[str]] = {}
    for row in rows:
        groups.setdefault((row["switch"], row["episodes"]), []).append(row["mode"])
    lines = []
    for number, ((switch, episodes), modes) in enumerate(groups.items(), start=1):
        names = " ".join(dict.fromkeys(modes))
        options = f"--modes {names} --episodes {episodes}{' --switch' if switch else ''} --json EVAL-{number}"
        lines.append(f"python -m flashvla_ros.train.evaluate --checkpoint RUN/checkpoint {options}")
    return "\n    ".join(lines)


def results_table(rows: list[dict[str, Any]]) -> str:
    """Return the evaluations' rows as a Markdown table: modes down, tasks across."""
    columns = list(dict.fromkeys((row["task"], row["switch"]) for row in rows))
    heads = [f"then {task}" if switch else task for task, switch in columns]
    lines = ["| mode | " + " | ".join(heads) + " | reused steps |", "|---|" + "---|" * (len(columns) + 1)]
    for mode in dict.fromkeys(row["mode"] for row in rows):
        cells = {(row["task"], row["switch"]): row for row in rows if row["mode"] == mode}
        rates = [str(Rate(cells[c]["successes"], cells[c]["episodes"])) if c in cells else "" for c in columns]
        reuse = [row["reuse_rate"] for row in cells.values()]
        shown = f"{min(reuse):.0%} to {max(reuse):.0%}" if max(reuse) else "none"
        lines.append(f"| `{mode}` | " + " | ".join(rates) + f" | {shown} |")
    return "\n".join(lines)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlashVLAError(f"{path} cannot be read ({error}): run the step that writes it again") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m flashvla_ros.train.publish", description="Make a model folder.")
    parser.add_argument("--run", type=Path, required=True, help="folder of flashvla_ros.train.fit")
    parser.add_argument(
        "--evaluations", type=Path, nargs="+", required=True, help="files of flashvla_ros.train.evaluate"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, such as models/demo")
    parser.add_argument("--note", default="", help="what a reader must know beside the figures")
    options = parser.parse_args(arguments)
    try:
        publish(options.run, options.evaluations, options.out, options.note)
    except FlashVLAError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
