"""One training run's settings, model and optimiser, and what a step does to them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from flashvla_ros.vla.model import PrismaticVLM
from training.architecture import DemoSize
from training.batches import Batch, Demonstrations
from training.dataset import DatasetError
from training.finer import finer
from training.forcing import action_logits, attention_to_image
from training.loss import StateHead, action_loss, look_loss, random_subset, smeared_bins, state_loss
from training.saving import save_checkpoint

LOOKING = 2  # decoder layer (from 0) whose first head learns to look at what the instruction names


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How the policy is trained.

    Attributes:
        sigma_bins: Standard deviation of the smeared targets, in action bins.
        state_weight: Weight of the loss of the auxiliary head.
        look_weight: Weight of the loss of attention to what is named, where the data set says where that is.
        state_rate: Learning rate of that head as a share of `learning_rate`. The head has a hundred times the inputs
            of any other layer, and a step of Adam changes its output by as much more.
        labels: Frames of a batch that show the same image, where the data set has several with other instructions.
        lighting: Largest change of an image's gain and offset, as a share.
        shift: Largest shift of an image along each side [pixels]; a hand goes by where things are from itself.
        dropout_share: Share of the steps in which only some visual tokens pass beyond a layer of `dropout_layers`.
        dropout_keep: Shares of the visual tokens kept in such a step, one drawn for each step.
        dropout_layers: First decoder layers that see only the kept tokens, one drawn for each step.
        precision: float32, or bfloat16 for autocast, which pays where the processor multiplies in that type.
        compile: Compile the model's blocks with torch.compile; takes a minute at the start.
        save_every: Steps between two checkpoints, each with its validation.
        validation_frames: Frames that a validation looks at.
    """

    seed: int = 0
    steps: int = 5200
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    sigma_bins: float = 4.0
    state_weight: float = 1.0
    state_rate: float = 0.05
    look_weight: float = 0.1
    labels: int = 1
    lighting: float = 0.1
    shift: int = 0
    dropout_share: float = 0.0
    dropout_keep: tuple[float, ...] = (0.625, 0.5, 0.375, 0.25, 0.125)
    dropout_layers: tuple[int, ...] = (0, 1, 2)
    precision: str = "float32"
    compile: bool = False
    save_every: int = 400
    validation_frames: int = 512
    size: DemoSize = dataclasses.field(default_factory=DemoSize)

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine to 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def load_weights(path: Path, modules: Mapping[str, nn.Module], size: DemoSize) -> None:
    """Take the weights of modules of a size from the state of a run, whose patches may be larger.

    Raises:
        DatasetError: It cannot be read, or they are of other sizes.
    """
    try:
        state = torch.load(path, weights_only=True)
        before = DemoSize(**state["config"]["size"])
        for name, module in modules.items():
            module.load_state_dict(finer(state[name], before, size))
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} does not fit this run's sizes, or cannot be read: {error}") from error


class Trainer:
    """Model, auxiliary head of so many states, and optimiser, and what one step does to them.

    Attributes:
        origin: Stands for the weights and the data that a run begins with; empty where that is not known.
    """

    def __init__(self, config: FitConfig, model: PrismaticVLM, states: int) -> None:
        self.config = config
        self.model = model
        self.head = StateHead(model.config.visual_tokens * model.config.vision_size, states)
        learning = [module for name, module in self.modules().items() if name != "head"]
        self._learning = [p for module in learning for p in module.parameters() if p.requires_grad]
        matrices = [p for p in self._learning if p.ndim > 1]
        vectors = [p for p in self._learning if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
            {"params": list(self.head.parameters()), "weight_decay": 0.0},
        ]
        if config.compile:
            for block in (*model.towers, model.projector, *model.layers):
                block.compile()
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.origin = ""
        self.step = 0
        self.seconds = 0.0

    def prepare(self, data: Demonstrations) -> None:
        """Make what the steps to come need of the data."""

    def modules(self) -> dict[str, nn.Module]:
        """Return what is saved, by name."""
        return {"model": self.model, "head": self.head}

    def losses(
        self, batch: Batch, keep: Tensor | None, layer: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the losses and the logits.

        They are those of the action and of looking [nats], and the mean squared error of the standardised state.
        """
        model, config = self.model, self.config
        vocabulary, bins = model.config.action_vocab_size, model.config.n_action_bins - 1
        target = smeared_bins(batch.actions, bins, config.sigma_bins)
        # The tokens fed back are drawn from the targets, as inexact as the policy's own will be.
        drawn = torch.multinomial(target.flatten(0, 1), 1, generator=generator).view(batch.actions.shape)
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            patches = model.patch_features(batch.pixel_values)
            visual, fed = model.projector(patches), vocabulary - 1 - drawn
            visual = visual.repeat_interleave(len(fed) // len(visual), 0)
            entered: list[Any] = []
            hook = model.layers[LOOKING].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[:3]))
            logits = action_logits(model, visual, batch.input_ids, fed, attention_mask=mask, keep=keep, layer=layer)
            hook.remove()
        logits = logits[..., :vocabulary].float()
        state = self.head(patches.float())
        losses = {"action": action_loss(logits, target), "state": state_loss(state, batch.state)}
        if keep is None and not batch.seen.isnan().all():
            looks = attention_to_image(model, LOOKING, entered[0], visual.shape[1], fed.shape[1])
            losses["look"] = look_loss(looks, batch.seen)
        return losses, logits

    def train_step(self, data: Demonstrations) -> dict[str, float]:
        """Take one step and return its losses."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = data.draw(rng, config.batch, config.lighting, config.shift, config.labels)
        keep, layer = None, 0
        if rng.uniform() < config.dropout_share:
            count = self.model.config.visual_tokens
            keep = random_subset(config.batch, count, round(count * rng.choice(config.dropout_keep)), generator)
            layer = int(rng.choice(config.dropout_layers))
        for group in self.optimizer.param_groups[:-1]:
            group["lr"] = config.rate(self.step)
        self.optimizer.param_groups[-1]["lr"] = config.rate(self.step) * config.state_rate
        losses, _ = self.losses(batch, keep, layer, generator)
        self.optimizer.zero_grad(set_to_none=True)
        weights = {"action": 1.0, "state": config.state_weight, "look": config.look_weight}
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        nn.utils.clip_grad_norm_(self._learning, config.clip)
        self.optimizer.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    @torch.no_grad()
    def validate(self, data: Demonstrations) -> dict[str, float]:
        """Return losses on held-out episodes, dense, and the mean error of each action dimension in [-1, 1]."""
        config = self.config
        rows = data.validation
        if not len(rows):
            return {}
        rows = rows[np.linspace(0, len(rows) - 1, min(config.validation_frames, len(rows))).astype(np.int64)]
        generator = torch.Generator().manual_seed(config.seed)
        means: list[dict[str, float]] = []
        error = []
        for chunk in np.array_split(rows, math.ceil(len(rows) / config.batch)):
            batch = data.batch(chunk)
            losses, outputs = self.losses(batch, None, 0, generator)
            error.append(self.errors(outputs, batch))
            means.append({name: loss.item() for name, loss in losses.items()})
        errors = {f"error_{i}": value for i, value in enumerate(torch.cat(error).mean(0).tolist())}
        return {name: float(np.mean([row[name] for row in means])) for name in means[0]} | errors

    def errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the absolute error [B, D] of each action dimension that the logits [B, D, vocabulary] choose."""
        bins = self.model.config.n_action_bins - 1
        best = outputs[..., -bins:].flip(-1).argmax(-1)
        return ((best + 0.5) * (2.0 / bins) - 1.0 - batch.actions).abs()

    def write(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Write the checkpoint that the policy loads."""
        save_checkpoint(folder, self.model, tokenizer, dtype=torch.float16)

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs."""
        state = {
            "config": dataclasses.asdict(self.config),
            "origin": self.origin,
            "step": self.step,
            "seconds": self.seconds,
            **{name: module.state_dict() for name, module in self.modules().items()},
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a state that :meth:`save` wrote with the same settings and, unless it is finished, origin.

        Raises:
            DatasetError: It was written with others.
        """
        state = torch.load(path, weights_only=True)
        if state["config"] != dataclasses.asdict(self.config):
            raise DatasetError(f"{path} was written with other settings: give the same ones, or another --out")
        origin = state.get("origin", self.origin)  # older states do not say
        if state["step"] < self.config.steps and origin != self.origin:
            raise DatasetError(f"{path} began with another --init or other data: give the same, or another --out")
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
