"""Train the demo policy by imitation: ``python -m flashvla_ros.train.fit --data DIR --out DIR``.

Every step depends on (seed, step) alone, so a run that was stopped goes on with ``--resume`` as if it had not been.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.sim.tasks import TASKS
from flashvla_ros.train.architecture import DemoSize, demo_config, demo_tokenizer
from flashvla_ros.train.batches import Batch, Demonstrations
from flashvla_ros.train.dataset import AUXILIARY, DatasetError, load
from flashvla_ros.train.loss import StateHead, action_loss, random_subset, smeared_bins
from flashvla_ros.vla.checkpoint import save_checkpoint
from flashvla_ros.vla.model import OpenVLA

STATE, LOG, DESCRIPTION, CHECKPOINT = "state.pt", "log.jsonl", "run.json", "checkpoint"
LOG_EVERY = 20


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How the policy is trained.

    Attributes:
        sigma_bins: Standard deviation of the smeared targets, in action bins.
        state_weight: Weight of the loss of the auxiliary head.
        state_rate: Learning rate of that head as a share of `learning_rate`. The head has a hundred times the inputs
            of any other layer, and a step of Adam changes its output by as much more.
        lighting: Largest change of an image's gain and offset, as a share.
        dropout_share: Share of the steps in which only some visual tokens pass beyond `dropout_layer`.
        dropout_keep: Shares of the visual tokens kept in such a step, one drawn for each step.
        dropout_layer: First decoder layer that sees only the kept tokens.
        save_every: Steps between two checkpoints, each with its validation.
        validation_frames: Frames that a validation looks at.
    """

    seed: int = 0
    steps: int = 2400
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    sigma_bins: float = 4.0
    state_weight: float = 1.0
    state_rate: float = 0.05
    lighting: float = 0.1
    dropout_share: float = 0.5
    dropout_keep: tuple[float, ...] = (0.75, 0.625, 0.5, 0.375, 0.25)
    dropout_layer: int = 2
    save_every: int = 400
    validation_frames: int = 512
    size: DemoSize = dataclasses.field(default_factory=DemoSize)

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine to 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


class Trainer:
    """Model, auxiliary head and optimiser, and what one step does to them."""

    def __init__(self, config: FitConfig, model: OpenVLA) -> None:
        self.config = config
        self.model = model
        self.head = StateHead(model.config.visual_tokens * model.config.vision_size, len(AUXILIARY))
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay, "share": 1.0},
            {"params": vectors, "weight_decay": 0.0, "share": 1.0},
            {"params": list(self.head.parameters()), "weight_decay": 0.0, "share": config.state_rate},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.seconds = 0.0

    def losses(self, batch: Batch, keep: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return the action loss [nats], the mean squared error of the standardised state, and the logits."""
        model, config = self.model, self.config
        vocabulary, bins = model.config.action_vocab_size, model.config.n_action_bins - 1
        target = smeared_bins(batch.actions, bins, config.sigma_bins)
        # The tokens fed back are drawn from the targets, as inexact as the policy's own will be.
        drawn = torch.multinomial(target.flatten(0, 1), 1, generator=generator).view(batch.actions.shape)
        patches = model.patch_features(batch.pixel_values)
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        logits = model.action_logits(
            model.projector(patches),
            batch.input_ids,
            vocabulary - 1 - drawn,
            attention_mask=mask,
            keep=keep,
            layer=config.dropout_layer,
        )[..., :vocabulary]
        return action_loss(logits, target), nn.functional.mse_loss(self.head(patches), batch.state), logits

    def train_step(self, data: Demonstrations) -> dict[str, float]:
        """Take one step and return its losses."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = data.draw(rng, config.batch, config.lighting)
        keep = None
        if rng.uniform() < config.dropout_share:
            count = self.model.config.visual_tokens
            keep = random_subset(config.batch, count, round(count * rng.choice(config.dropout_keep)), generator)
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step) * group["share"]
        action, state, _ = self.losses(batch, keep, generator)
        self.optimizer.zero_grad(set_to_none=True)
        (action + config.state_weight * state).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.step += 1
        return {"action": action.item(), "state": state.item()}

    @torch.no_grad()
    def validate(self, data: Demonstrations) -> dict[str, float]:
        """Return losses on held-out episodes, dense, and the mean error of each action dimension in [-1, 1]."""
        config = self.config
        rows = data.validation
        if not len(rows):
            return {}
        rows = rows[np.linspace(0, len(rows) - 1, min(config.validation_frames, len(rows))).astype(np.int64)]
        generator = torch.Generator().manual_seed(config.seed)
        action, state, error = [], [], []
        for chunk in np.array_split(rows, math.ceil(len(rows) / config.batch)):
            batch = data.batch(chunk)
            losses = self.losses(batch, None, generator)
            bins = self.model.config.n_action_bins - 1
            best = losses[2][..., -bins:].flip(-1).argmax(-1)
            error.append(((best + 0.5) * (2.0 / bins) - 1.0 - batch.actions).abs())
            action.append(losses[0].item())
            state.append(losses[1].item())
        errors = {f"error_{i}": value for i, value in enumerate(torch.cat(error).mean(0).tolist())}
        return {"action": float(np.mean(action)), "state": float(np.mean(state)), **errors}

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        state = {
            "config": dataclasses.asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a state that :meth:`save` wrote with the same settings."""
        state = torch.load(path, weights_only=True)
        if state["config"] != dataclasses.asdict(self.config):
            raise DatasetError(f"{path} was written with other settings: give the same ones, or another --out")
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def fit(data_folder: Path, out: Path, config: FitConfig, *, resume: bool = False) -> dict[str, Any]:
    """Train, writing state, log and checkpoint below `out`; return the last validation."""
    frames, meta = load(data_folder)
    if meta["image_size"] != config.size.image_size:
        raise DatasetError(
            f"{data_folder} has images of {meta['image_size']} px, --image-size says {config.size.image_size}"
        )
    torch.manual_seed(config.seed)
    tokenizer = demo_tokenizer(task.instruction for task in TASKS.values())
    model = OpenVLA(demo_config(config.size))
    trainer = Trainer(config, model)
    data = Demonstrations(frames, meta["instructions"], model.config, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    if resume and (out / STATE).exists():
        trainer.restore(out / STATE)
    elif (out / STATE).exists():
        raise DatasetError(f"{out} already holds a run: add --resume to go on with it, or give another --out")
    description = _describe(trainer, data, meta)
    description["episodes"] = len(np.unique(frames.episode))
    description["episodes_per_task"] = len(list(data_folder.glob("episode-*"))) // len(meta["instructions"])
    (out / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    print(f"{description['frames']} frames, {description['parameters']} parameters, {description['device']}")
    return _run(trainer, data, tokenizer, out)


def _describe(trainer: Trainer, data: Demonstrations, meta: dict[str, Any]) -> dict[str, Any]:
    """What a model card says of a run."""
    return {
        "config": dataclasses.asdict(trainer.config),
        "data": meta,
        "frames": len(data.training),
        "validation_frames": len(data.validation),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": f"{_processor()}, {torch.get_num_threads()} threads, float32",
        "torch": torch.__version__,
    }


def _processor() -> str:
    """Name of the CPU where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
            means = {name: float(np.mean([row[name] for row in recent])) for name in recent[0]}
            recent.clear()
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            trainer.seconds = time.monotonic() - started
            line: dict[str, Any] = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **means}
            if saving:
                line["validation"] = validation = trainer.validate(data)
                trainer.save(out / STATE)
                save_checkpoint(out / CHECKPOINT, trainer.model, tokenizer, dtype=torch.float16)
            log.write(json.dumps(line) + "\n")
            log.flush()
    return validation


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    default = FitConfig()
    parser = argparse.ArgumentParser(
        prog="python -m flashvla_ros.train.fit", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="data set of flashvla_ros.train.collect")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the policy lies in its checkpoint/")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=default.size.image_size, help="pixels (default %(default)s)")
    for name in ("seed", "steps", "batch", "learning_rate", "dropout_share", "state_weight", "lighting", "save_every"):
        value = getattr(default, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(value), default=value, help="default %(default)s; see FitConfig")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse_arguments(arguments)
    names = {field.name for field in dataclasses.fields(FitConfig)}
    values = {name: value for name, value in vars(options).items() if name in names}
    torch.set_num_threads(options.threads)
    try:
        config = FitConfig(**values, size=DemoSize(image_size=options.image_size))
        validation = fit(options.data, options.out, config, resume=options.resume)
    except FlashVLAError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    print(json.dumps(validation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
