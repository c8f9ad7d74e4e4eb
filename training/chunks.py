"""Train chunks of actions, as OpenVLA-OFT predicts them, on the frozen visual tokens of a policy that exists.

Towers and projector keep the weights they have, so each frame's visual tokens are computed once and kept on disk; the
decoder and the regression head learn. On a CPU this halves the work.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from flashvla_ros.core.files import write_text
from flashvla_ros.vla.arch.oft.head import L1Head
from flashvla_ros.vla.model import PrismaticVLM
from training.batches import Batch, Demonstrations
from training.dataset import DatasetError
from training.parallel import chunk_rows
from training.trainer import FitConfig, Trainer

_AT_ONCE = 32  # frames


class VisualTokens:
    """The visual tokens of every frame, in a file that is filled once and goes on where it was stopped.

    Args:
        path: float16 [F, N, d]; one of another size is made again.
        model: Its towers and projector must not change afterwards.
        data: The frames.
        origin: Of both, see :func:`training.fit.origin_of`.

    Raises:
        DatasetError: The file is of another origin.
    """

    def __init__(self, path: Path, model: PrismaticVLM, data: Demonstrations, origin: str) -> None:
        count = len(data.training) + len(data.validation)
        shape = (count, model.config.visual_tokens, model.config.llama().hidden_size)
        progress = path.with_suffix(".done")
        fits = path.exists() and path.stat().st_size == 2 * int(np.prod(shape))
        done = progress.read_text().split() if path.exists() and progress.exists() else []
        if done[1:] not in ([], [origin]):  # older files do not say
            raise DatasetError(f"{path} was made from another --init or other data: give the same, or another --out")
        start = int(done[0]) if fits and done else 0
        self._tokens = np.memmap(path, np.float16, "r+" if fits else "w+", shape=shape)
        for first in tqdm(range(start, count, _AT_ONCE), unit="batch", desc="visual tokens", disable=start == count):
            rows = np.arange(first, min(first + _AT_ONCE, count))
            with torch.no_grad():
                self._tokens[rows] = model.visual_tokens(data.batch(rows).pixel_values).numpy().astype(np.float16)
            self._tokens.flush()
            write_text(progress, f"{rows[-1] + 1} {origin}")

    def __call__(self, rows: NDArray[np.int64]) -> Tensor:
        """Return those of some frames [B, N, d], float32."""
        return torch.from_numpy(np.asarray(self._tokens[rows], dtype=np.float32))


class ChunkTrainer(Trainer):
    """Trains decoder and head by the mean absolute error of a chunk.

    Args:
        config: How to train; what it says of bins, state and light has no part here.
        model: Its towers and projector are trained already.
        data: Frames whose actions are chunks.
        tokens: File of the frames' visual tokens.
    """

    def __init__(self, config: FitConfig, model: PrismaticVLM, data: Demonstrations, tokens: Path) -> None:
        self.chunk_size, size = data.batch(data.training[:1]).actions.shape[1:]
        width = model.config.llama().hidden_size
        self.action_head = L1Head(size * width, width, size)
        self._file = tokens
        for frozen in (model.towers, model.projector, model.language_model.lm_head):
            frozen.requires_grad_(False)
        model.config = dataclasses.replace(
            model.config, oft={"chunk_size": self.chunk_size, "action_bounds": "quantiles"}
        )
        super().__init__(config, model, data.state_mean.shape[0])

    def prepare(self, data: Demonstrations) -> None:
        """Make the visual tokens that are missing."""
        self._tokens = VisualTokens(self._file, self.model, data, self.origin)

    def modules(self) -> dict[str, nn.Module]:
        """Return what is saved, by name."""
        return {**super().modules(), "action_head": self.action_head}

    def losses(
        self, batch: Batch, keep: Tensor | None, layer: int, _generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the mean absolute error, and the actions [B, T, D]."""
        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        count = batch.actions[0].numel()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            visual = self._tokens(batch.rows)
            rows = chunk_rows(self.model, visual, batch.input_ids, count, attention_mask=mask, keep=keep, layer=layer)
        actions = self.action_head(rows.float().reshape(len(rows), self.chunk_size, -1))
        return {"action": nn.functional.l1_loss(actions, batch.actions)}, actions

    def errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the absolute error [B, D] of each dimension, a mean over the chunk."""
        return (outputs - batch.actions).abs().mean(1)

    def write(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Write the checkpoint, and the head beside it as OpenVLA-OFT names it."""
        super().write(folder, tokenizer)
        state = {f"model.{name}": value.half().contiguous() for name, value in self.action_head.state_dict().items()}
        save_file(state, folder / "action_head--latest_checkpoint.safetensors", metadata={"format": "pt"})
