"""Train the demo policy by imitation: ``python -m training.fit --data DIR --out DIR``.

Every step depends on (seed, step) alone, so a run that was stopped goes on with ``--resume`` as if it had not been.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import processor_name
from flashvla_ros.core.files import write_text
from flashvla_ros.core.provenance import checkpoint_fingerprint
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.vla.checkpoint import load_config, load_model
from flashvla_ros.vla.model import PrismaticVLM
from training.architecture import DemoSize, demo_config, demo_tokenizer
from training.batches import Demonstrations
from training.chunks import ChunkTrainer
from training.dataset import DRIVEN, META, DatasetError, episode_id, load
from training.trainer import FitConfig, Trainer, load_weights

STATE, LOG, DESCRIPTION, CHECKPOINT, TOKENS = "state.pt", "log.jsonl", "run.json", "checkpoint", "tokens.f16"
LOG_EVERY = 20
OPTIONS = (  # fields of FitConfig that the command line sets
    "seed",
    "steps",
    "batch",
    "learning_rate",
    "warmup",
    "dropout_share",
    "state_weight",
    "state_rate",
    "lighting",
    "shift",
    "precision",
    "compile",
    "save_every",
)


def fit(
    data_folder: Path, out: Path, config: FitConfig, *, init: Path | None = None, resume: bool = False
) -> dict[str, Any]:
    """Train, writing state, log and checkpoint below `out`; return the last validation.

    Args:
        data_folder: Data set of :mod:`training.collect`.
        out: Folder of the run.
        config: How to train.
        init: Folder of a finished run of the same sizes, or with larger patches, or of a checkpoint, whose weights
            this one starts from; None: from scratch. Chunks need one, for its towers and projector are not trained
            further.
        resume: Go on with a run that was stopped.

    Raises:
        DatasetError: The data or a run's folder is not what the settings ask for.
    """
    if (out / STATE).exists() and not resume:
        raise DatasetError(f"{out} already holds a run: add --resume to go on with it, or give another --out")
    frames, meta = load(data_folder)
    if meta["image_size"] != config.size.image_size:
        raise DatasetError(
            f"{data_folder} has images of {meta['image_size']} px, --image-size says {config.size.image_size}"
        )
    torch.manual_seed(config.seed)
    tokenizer = demo_tokenizer({*(task.instruction for task in TASKS.values()), *meta["instructions"]})
    published = init is not None and (init / "config.json").exists()
    if init is not None and published:
        model = load_model(init, load_config(init), torch.device("cpu"), torch.float32, "sdpa")
    else:
        model = PrismaticVLM(demo_config(config.size, meta.get("norm_stats")), attention="sdpa")
    data = Demonstrations(frames, meta["instructions"], model.config, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    if frames.actions.ndim == 3:
        if init is None:
            raise DatasetError(
                f"{data_folder} holds chunks: give --init the folder of a checkpoint, such as models/demo"
            )
        if not published:  # its towers make the visual tokens
            load_weights(init / STATE, {"model": model}, config.size)
        trainer: Trainer = ChunkTrainer(config, model, data, out / TOKENS)
    else:
        trainer = Trainer(config, model, frames.auxiliary.shape[1])
    if init is not None and not published:
        load_weights(init / STATE, trainer.modules(), config.size)
    trainer.origin = origin_of(data_folder, init)
    _begin(trainer, data, out / STATE)
    description = _describe(trainer, data, meta) | {"init": _history(init)}
    paths = list(data_folder.glob("episode-*.npz"))
    driven = [episode_id(path) for path in paths if DRIVEN in path.name]
    episodes = np.unique(frames.episode)
    description["pictures"] = len(np.unique(frames.image[data.training]))
    description["driven"] = int(np.isin(episodes, driven).sum())
    description["episodes"] = len(episodes) - description["driven"]
    description["episodes_per_task"] = (len(paths) - len(driven)) // len(meta["instructions"])
    if trainer.step < config.steps or not (out / DESCRIPTION).exists():  # a finished run saw what it saw
        write_text(out / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    print(f"{description['frames']} frames, {description['parameters']} parameters, {description['device']}")
    return _run(trainer, data, tokenizer, out)


def _begin(trainer: Trainer, data: Demonstrations, state: Path) -> None:
    if state.exists():
        trainer.restore(state)
    if trainer.step < trainer.config.steps:  # what a finished run began with is not asked
        trainer.prepare(data)


def origin_of(data_folder: Path, init: Path | None) -> str:
    """Return 16 hexadecimal digits of the names and sizes of a data set's files and of the weights to begin with."""
    files = [data_folder / META, *sorted(data_folder.glob("episode-*.npz"))]
    parts = [f"{path.name} {path.stat().st_size}" for path in files]
    if init is not None and (init / "config.json").exists():
        parts.append(checkpoint_fingerprint(init))
    elif init is not None:
        parts.append(hashlib.sha256((init / STATE).read_bytes()).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _describe(trainer: Trainer, data: Demonstrations, meta: dict[str, Any]) -> dict[str, Any]:
    """What a model card says of a run."""
    return {
        "config": dataclasses.asdict(trainer.config),
        "data": meta,
        "frames": len(data.training),
        "validation_frames": len(data.validation),
        "parameters": sum(p.numel() for n, part in trainer.modules().items() if n != "head" for p in part.parameters()),
        "device": f"{processor_name()}, {torch.get_num_threads()} threads, {trainer.config.precision}",
        "torch": torch.__version__,
    }


def _history(init: Path | None) -> list[dict[str, Any]]:
    """The descriptions of the runs that this one builds on, the first one first."""
    if init is None:
        return []
    if not (init / DESCRIPTION).exists():
        return [{"checkpoint": init.name}]
    before, saved = json.loads((init / DESCRIPTION).read_text(encoding="utf-8")), last_save(init)
    config = before["config"] | {"steps": saved["step"]}  # it may have been stopped before its end
    same = {key: before[key] for key in ("device", "torch")}
    return [*before["init"], {"config": config, **same, "seconds": saved["seconds"]}]


def last_save(run: Path) -> dict[str, Any]:
    """Return the line of a run's log that belongs to its checkpoint.

    Raises:
        DatasetError: It has none.
    """
    try:
        lines = map(json.loads, (run / LOG).read_text(encoding="utf-8").splitlines())
        last: dict[str, Any] = [line for line in lines if "validation" in line][-1]
    except (OSError, IndexError, ValueError) as error:
        raise DatasetError(f"{run / LOG} has no saved step ({error}): train it with training.fit") from error
    return last


def _run(trainer: Trainer, data: Demonstrations, tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    config = trainer.config
    validation: dict[str, Any] = {}
    with tqdm(total=config.steps, initial=trainer.step, unit="step") as bar, (out / LOG).open("a") as log:
        recent: list[dict[str, float]] = []
        started = time.monotonic() - trainer.seconds
        while trainer.step < config.steps:
            recent.append(trainer.train_step(data))
            bar.update()
            saving = trainer.step % config.save_every == 0 or trainer.step == config.steps
            if not saving and trainer.step % LOG_EVERY:
                continue
            names = dict.fromkeys(name for row in recent for name in row)  # a step with few tokens looks at none
            means = {name: float(np.mean([row[name] for row in recent if name in row])) for name in names}
            recent.clear()
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            trainer.seconds = time.monotonic() - started
            line: dict[str, Any] = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **means}
            if saving:
                line["validation"] = validation = trainer.validate(data)
                trainer.write(out / CHECKPOINT, tokenizer)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if saving:  # last: a run that is stopped before comes back to this step
                trainer.save(out / STATE)
    return validation


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    default = FitConfig()
    parser = argparse.ArgumentParser(prog="python -m training.fit", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data set of training.collect")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the policy lies in its checkpoint/")
    parser.add_argument(
        "--init", type=Path, metavar="RUN", help="start from the weights of a finished run, or a checkpoint"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=default.size.image_size, help="pixels (default %(default)s)")
    for name in OPTIONS:
        value = getattr(default, name)
        kind: dict[str, Any] = {"action": "store_true"} if isinstance(value, bool) else {"type": type(value)}
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=value, help="default %(default)s; see FitConfig", **kind)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse_arguments(arguments)
    names = {field.name for field in dataclasses.fields(FitConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    torch.set_num_threads(options.threads)

    def work() -> None:
        config = FitConfig(**values, size=DemoSize(image_size=options.image_size))
        print(json.dumps(fit(options.data, options.out, config, init=options.init, resume=options.resume)))

    return exit_code(work, interrupted="the same command with --resume goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
