"""From demonstrations to the tensors of one training step."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.processor import ImageProcessor, PromptEncoder
from training.dataset import Frames
from training.forcing import pad_prompts

VALIDATION_EVERY = 20  # one episode in so many is never trained on


@dataclasses.dataclass(frozen=True)
class Batch:
    """B frames of G images, each of which as many frames show.

    Attributes:
        pixel_values: [G, 3 per tower, S, S] normalised images.
        input_ids: [B, P] prompts, shorter ones padded right after BOS.
        attention_mask: [B, P] true for real tokens.
        actions: [B, D] normalised actions, or chunks [B, T, D] of them.
        state: [G, A] standardised state of the scene; NaN where there is nothing to know.
        seen: [B, 2] where the image shows what the instruction names, see :class:`training.dataset.Frames`.
        rows: [B] of the frames in the data set.
    """

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    actions: Tensor
    state: Tensor
    seen: Tensor
    rows: NDArray[np.int64]


class Demonstrations:
    """A data set in memory, split by episode into training and validation frames.

    Args:
        frames: The data.
        instructions: What ``frames.instruction`` indexes.
        config: Gives the image statistics of the towers.
        tokenizer: Of the checkpoint.
    """

    def __init__(self, frames: Frames, instructions: list[str], config: OpenVLAConfig, tokenizer: Tokenizer) -> None:
        held_out = frames.episode % VALIDATION_EVERY == VALIDATION_EVERY - 1
        self.training = np.flatnonzero(~held_out)
        self.validation = np.flatnonzero(held_out)
        self._frames = frames
        weight = frames.weight[self.training].astype(np.float64)
        self._share = None if (weight == weight[0]).all() else weight / weight.sum()
        state = frames.auxiliary
        self.state_mean, self.state_std = np.nanmean(state[self.training], 0), np.nanstd(state[self.training], 0) + 1e-6
        encode = PromptEncoder(tokenizer, config.llm_max_length)
        self._ids, self._mask = pad_prompts([encode(line) for line in instructions], config.pad_token_id)
        processor = ImageProcessor.from_config(config)
        self._mean = torch.tensor(np.array(processor.means), dtype=torch.float32)[:, None, :, None, None] * 255.0
        self._std = torch.tensor(np.array(processor.stds), dtype=torch.float32)[:, None, :, None, None] * 255.0

    def batch(
        self,
        rows: NDArray[np.int64],
        lighting: NDArray[np.float32] | None = None,
        shifts: NDArray[np.int64] | None = None,
        labels: int = 1,
    ) -> Batch:
        """Gather frames.

        Args:
            rows: [B] of them.
            lighting: [B / labels, 2] a gain and an offset in grey levels for the images' pixels.
            shifts: [B / labels, 2] rows and columns by which the images move; edges are repeated.
            labels: So many rows, one after the other, show the same image.
        """
        frames = self._frames
        instruction = torch.from_numpy(frames.instruction[rows].astype(np.int64))
        images = torch.from_numpy(frames.images[frames.image[rows[::labels]]]).permute(0, 3, 1, 2).float()
        if lighting is not None:
            gain, offset = torch.from_numpy(lighting).T[:, :, None, None, None]
            images = (images * gain + offset).clamp(0.0, 255.0)
        seen = frames.seen[rows]
        if shifts is not None:
            images = _shifted(images, shifts)
            seen = seen + np.repeat(shifts / images.shape[2:], labels, axis=0).astype(np.float32)
        towers = (images[None] - self._mean) / self._std
        return Batch(
            pixel_values=torch.cat(tuple(towers), dim=1).contiguous(),
            input_ids=self._ids[instruction],
            attention_mask=self._mask[instruction],
            actions=torch.from_numpy(frames.actions[rows]),
            state=torch.from_numpy((frames.auxiliary[rows[::labels]] - self.state_mean) / self.state_std),
            seen=torch.from_numpy(seen),
            rows=rows,
        )

    def draw(self, rng: np.random.Generator, size: int, lighting: float, shift: int = 0, labels: int = 1) -> Batch:
        """Draw training frames with replacement, each changed a little.

        Args:
            rng: What is drawn from.
            size: Frames.
            lighting: Largest change of gain and offset, as a share.
            shift: Largest shift along each side of an image [pixels].
            labels: Frames of each image, one after the other; those beyond the first are any that show it.
        """
        count = size // labels
        rows = rng.choice(self.training, count, p=self._share)
        change = rng.uniform(-lighting, lighting, (count, 2))
        shifts = rng.integers(-shift, shift + 1, (count, 2)) if shift else None
        image = self._frames.image
        first, end = (np.searchsorted(image, image[rows], side)[:, None] for side in ("left", "right"))
        others = rng.integers(first, end, (count, labels - 1))
        rows = np.concatenate([rows[:, None], others], axis=1).ravel()
        return self.batch(rows, (change * [1.0, 255.0] + [1.0, 0.0]).astype(np.float32), shifts, labels)


def _shifted(images: Tensor, shifts: NDArray[np.int64]) -> Tensor:
    """Move images [B, 3, H, W] by rows and columns [B, 2]."""
    height, width = images.shape[2:]
    reach = int(np.abs(shifts).max())
    padded = functional.pad(images, (reach, reach, reach, reach), mode="replicate")
    starts = reach - shifts
    moved = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, starts, strict=True)]
    return torch.stack(moved)
