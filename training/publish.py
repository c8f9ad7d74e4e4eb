"""Turn a finished run into a checkpoint folder with a model card: ``python -m training.publish``.

Every figure on the card is read from the run's own files and from the evaluations' JSON; none is typed in.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import write_results
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import write_text
from flashvla_ros.core.provenance import EVALUATION, checkpoint_fingerprint
from flashvla_ros.evaluation import markdown
from flashvla_ros.evaluation.summary import suites_in
from flashvla_ros.vla.checkpoint import load_config
from training.fit import CHECKPOINT, DESCRIPTION, OPTIONS, last_save
from training.trainer import FitConfig

TITLE = "Demo policy of flashvla_ros"

CARD = """---
license: apache-2.0
pipeline_tag: robotics
---
# {title}

A small vision-language-action policy in {kind}, by imitation of {experts}
and these instructions:

{instructions}

| | |
|---|---|
| parameters | {parameters:,} |
| image, visual tokens | {image} px square, {tokens} |
| action | {action}; `unnorm_key` {key} |
| data | {frames} of {episodes}, noise on what was executed; scenes drawn from 10⁹ on |
| training | {training} |
| {loss} |

## Success in closed loop

Lock-step, seeds counted from {seed}, which training never saw; 95 % Wilson intervals. Against `dense` on the same
seeds: the difference in points with Tango's 95 % interval, and McNemar's exact p, adjusted by Holm's rule for the
number of modes. FLOPs are multiples of the dense model's.

{modes}

{tables}

## Made with

    {made}
    {evaluations}
    python -m training.publish --run {run} --evaluations EVAL-*.json --out models/{name}

{note}
"""

PLAIN = """OpenVLA's architecture and Hugging Face layout (DINOv2 with registers and
SigLIP, projector, Llama decoder, 256-edge action tokens), trained from scratch"""
CHUNKS = """OpenVLA-OFT's architecture and files (DINOv2 with registers and SigLIP,
projector, Llama decoder, and an L1 head that makes {chunk} time steps of one pass). Decoder and head were trained;
towers and projector are those of `models/{start}`, trained before"""
PLAIN_LOSS = (
    "loss on held-out episodes | {action:.3f} nats above the targets' entropy; positions {state:.2%} of their variance"
)
CHUNKS_LOSS = "mean error on held-out episodes | {action:.3f} of actions from -1 to 1"

METAWORLD = {
    "experts": """Meta-World's scripted
experts. It is for demonstrations and tests of `flashvla_ros`: it knows one simulated robot, one camera""",
    "action": "dx, dy, dz in metres over 0.1 s within ±0.01 m, gripper from -1 (open) to 1 (closed)",
    "made": "python -m training.collect --out DATA --tasks {tasks} --episodes {episodes} --seed {data_seed}{recording}",
}
LIBERO = {
    "experts": """a scripted expert
in LIBERO. It is small enough to show here what acceleration does to it: it knows the cheap pictures of
`--render fast`, the scene over the wrist's view in one image,""",
    "action": "x, y, z, rx, ry, rz in robosuite's units from -1 to 1, gripper from 0 (closed) to 1 (open)",
    "made": "python -m training.libero --out RUNS --episodes {episodes} --seed {data_seed}",
}


def publish(run: Path, evaluations: list[Path], out: Path, note: str = "", title: str = TITLE) -> None:
    """Copy the checkpoint of `run` to `out` and write its card and the evaluations' rows beside it.

    Raises:
        FlashVLAError: A file is missing, the run is not finished, or another checkpoint was evaluated.
    """
    results = [markdown.read_evaluation(path) for path in evaluations]
    checkpoint = checkpoint_fingerprint(run / CHECKPOINT)
    for path, result in zip(evaluations, results, strict=True):
        if result["meta"]["checkpoint"]["sha256"] != checkpoint:
            raise FlashVLAError(f"{path} evaluates another checkpoint than {run / CHECKPOINT}: evaluate this one")
    card = model_card(run, results, out.name, note, title)
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted((run / CHECKPOINT).iterdir()):
        shutil.copyfile(path, out / path.name)
    write_text(out / "README.md", card)
    rows = [row for result in results for row in result["rows"]]
    commands = [result["meta"]["command"] for result in results]
    write_results(out / EVALUATION, {**results[0]["meta"], "commands": commands}, rows)


def model_card(run: Path, results: Sequence[Mapping[str, Any]], name: str, note: str = "", title: str = TITLE) -> str:
    """Return the text of the card of ``models/<name>``.

    Raises:
        FlashVLAError: A file is missing or the run is not finished.
    """
    description = _read(run / DESCRIPTION)
    config, data = description["config"], description["data"]
    last = last_save(run)
    if last["step"] < config["steps"]:
        raise FlashVLAError(f"{run} stopped at step {last['step']} of {config['steps']}: finish it with --resume first")
    parts = [*description["init"], description | {"seconds": last["seconds"]}]
    model = load_config(run / CHECKPOINT)
    chunk, libero = data.get("chunk", 1), "suite" in data
    texts = LIBERO if libero else METAWORLD
    made = texts["made"].format(
        tasks=" ".join(data.get("tasks", ())),
        episodes=description["episodes_per_task"],
        data_seed=data["seed"],
        recording=f" --chunk {chunk} --every {data['every']}" if chunk > 1 else "",
    )
    trained = "RUNS/" + run.name if libero else "RUN"
    kind, loss = (CHUNKS, CHUNKS_LOSS) if chunk > 1 else (PLAIN, PLAIN_LOSS)
    return (
        CARD.format(
            instructions="\n".join(f"- `{line}`" for line in data["instructions"]),
            parameters=description["parameters"],
            image=model.towers[0].image_size,
            tokens=model.visual_tokens,
            key="`" + "`, `".join(model.norm_stats) + "`",
            frames=_frames(description),
            episodes=_episodes(description),
            training="; then ".join(_training(part) for part in parts),
            seed=results[0]["meta"]["seeds"][0],
            modes=_modes(results),
            tables=_tables(results),
            experts=texts["experts"],
            action=texts["action"],
            made="\n    ".join([made, *([] if libero else _fit_commands(parts))]),
            evaluations=_evaluation_commands(results, trained),
            run=trained,
            name=name,
            kind=kind.format(chunk=chunk, start=parts[0].get("checkpoint", "")),
            loss=loss.format(**last["validation"]),
            title=title,
            note=note,
        ).rstrip()
        + "\n"
    )


def _frames(description: Mapping[str, Any]) -> str:
    """How many frames a run was trained on, and how many pictures they show where several share one."""
    frames, pictures = description["frames"], description["pictures"]
    return f"{frames:,} frames" if pictures == frames else f"{frames:,} labels of {pictures:,} pictures"


def _episodes(description: Mapping[str, Any]) -> str:
    driven = description.get("driven", 0)
    return f"{description['episodes']} expert episodes" + (f" and {driven} that the policy drove" if driven else "")


def _training(part: Mapping[str, Any]) -> str:
    """One run in words: how long, on what, with how much token dropout; or the checkpoint that it started from."""
    if "checkpoint" in part:
        return f"from `models/{part['checkpoint']}`"
    config = part["config"]
    share = config["dropout_share"]
    dropout = f", token dropout in {share:.0%} of them" if share else ""
    minutes = part["seconds"] / 60
    return (
        f"{config['steps']} steps of {config['batch']} frames{dropout}: {minutes:.0f} min on {part['device']}, "
        f"torch {part['torch']}"
    )


def _fit_commands(parts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The commands of the runs that a checkpoint comes from, each starting from the weights of the one before."""
    start = ""
    for number, part in enumerate(parts):
        if "checkpoint" in part:
            start = f" --init models/{part['checkpoint']}"
            continue
        out = "RUN" if number == len(parts) - 1 else f"RUN-{number}"
        config = part["config"]
        command = f"python -m training.fit --data DATA{start} --out {out} --seed {config['seed']}"
        yield f"{command} {_options(config)}".rstrip()
        start = f" --init {out}"


def _options(config: Mapping[str, Any]) -> str:
    """The options of a training run that are not the defaults."""
    default = dataclasses.asdict(FitConfig())
    changed = {name: config[name] for name in OPTIONS if name != "seed" and config[name] != default[name]}
    flags = {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
    return " ".join(flag if value is True else f"{flag} {value}" for flag, value in flags.items())


def _evaluation_commands(results: Sequence[Mapping[str, Any]], run: str) -> str:
    lines = []
    for number, result in enumerate(results, start=1):
        command = result["meta"]["command"].replace("--checkpoint DIR", f"--checkpoint {run}/checkpoint")
        lines.append(f"{command} --json EVAL-{number}.json")
    return "\n    ".join(lines)


def _modes(results: Sequence[Mapping[str, Any]]) -> str:
    """Say what each mode's settings are."""
    lines = {}
    for mode, values in (pair for result in results for pair in result["meta"]["modes"].items()):
        settings = ", ".join(f"`{name}` {value}" for name, value in values.items())
        lines[mode] = f"- `{mode}`: {settings or 'the defaults of flashvla_ros'}"
    return "\n".join(lines.values())


def _tables(results: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for result in results:
        suites = suites_in(row["task"] for row in result["rows"]) if len(results) > 1 else []
        for name, chosen in markdown.tables(result["rows"]):
            title = name or "".join(suites)  # of a file with one suite the table has no name
            parts += [*([f"### {title}"] if title else []), markdown.success_table(chosen), markdown.cost_table(chosen)]
    return "\n\n".join(parts)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlashVLAError(f"{path} cannot be read ({error}): run the step that writes it again") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.publish", description="Make a model folder.")
    parser.add_argument("--run", type=Path, required=True, help="folder of training.fit")
    parser.add_argument("--evaluations", type=Path, nargs="+", required=True, help="files of flashvla-ros eval --json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, such as models/demo")
    parser.add_argument("--title", default=TITLE, help="of the card (%(default)s)")
    parser.add_argument("--note", default="", help="what a reader must know beside the figures")
    options = parser.parse_args(arguments)
    return exit_code(lambda: publish(options.run, options.evaluations, options.out, options.note, options.title))


if __name__ == "__main__":
    sys.exit(main())
