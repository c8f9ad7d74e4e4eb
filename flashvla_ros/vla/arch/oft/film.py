"""FiLM (OpenVLA-OFT+): the instruction scales and shifts every row of the vision towers, in every block.

Such a checkpoint has its towers a second time, in ``vision_backbone--*``: with the modules that scale and shift, and
with LoRA that was not merged, on every linear layer and on the convolution that cuts patches.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.keys import TOWERS, is_unused
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.parts import Tensors, fill, read_part, under
from flashvla_ros.vla.towers import VisionBlock, VisionTower

_BASE, _FIRST, _SECOND = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"
_MOST_ALPHA = 16  # the official code sets α to the rank, but not above this


class FilmedBlock(nn.Module):
    """A block whose rows are scaled and shifted between attention and MLP.

    Args:
        block: Of a tower.
        size: Of its rows.
        language: [1, d] mean embedding of the prompt; whoever runs the block writes it.
    """

    def __init__(self, block: VisionBlock, size: int, language: Tensor) -> None:
        super().__init__()
        self.block = block
        self.scale, self.shift = nn.Linear(language.shape[1], size), nn.Linear(language.shape[1], size)
        self._language = language

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, L, d] to [B, L, d]."""
        scale, shift = self.scale(self._language)[:, None], self.shift(self._language)[:, None]
        return self.block.fed(self.block.attended(hidden) * (1 + scale) + shift)


def install(model: PrismaticVLM, path: Path) -> Tensor:
    """Replace the towers' weights by those of a file and let language modulate them.

    Returns:
        [1, d] to write the mean embedding of the prompt into before each image.

    Raises:
        CheckpointError: The file does not fit the towers.
    """
    table = model.language_model.model.embed_tokens.weight
    language = table.new_zeros(1, table.shape[1])
    tensors = merged(read_part(path), path)
    for prefix, tower in zip(TOWERS, model.towers, strict=False):
        assert isinstance(tower, VisionTower)  # noqa: S101  # ModuleList forgets it
        with torch.device("meta"):
            size = tower.config.hidden_size
            blocks = [FilmedBlock(block, size, language) for block in tower.blocks if isinstance(block, VisionBlock)]
        tower.blocks = nn.ModuleList(blocks)
        used = {name: value for name, value in tensors.items() if not is_unused(name, model.config)}
        fill(tower, under(used, prefix), path, table.device, table.dtype)
    return language


def merged(tensors: Tensors, path: Path) -> Tensors:
    """Return the tensors with LoRA added to its base: W + α/r · B·A.

    Raises:
        CheckpointError: A base without its pair, or one without its base.
    """
    found: Tensors = {}
    for name, value in tensors.items():
        if _BASE not in name:
            if name.endswith((_FIRST, _SECOND)):
                stem = name.removesuffix(_FIRST).removesuffix(_SECOND)
                if f"{stem}{_BASE}weight" not in tensors:
                    raise CheckpointError(f"{path} has {name} without {stem}{_BASE}weight: copy the file again")
                continue
            found[name] = value
            continue
        stem, _, kind = name.partition(_BASE)
        if kind == "weight":
            first, second = tensors.get(stem + _FIRST), tensors.get(stem + _SECOND)
            if first is None or second is None:
                raise CheckpointError(f"{path} has {name} without its pair of LoRA matrices: copy the file again")
            try:
                rank = len(first)
                added = second.flatten(1).double() @ first.flatten(1).double() * (min(rank, _MOST_ALPHA) / rank)
                value = (value.double() + added.reshape(value.shape)).to(value.dtype)
            except (TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
                raise CheckpointError(
                    f"{path}: the LoRA matrices of {stem} do not fit its weight: copy the file again"
                ) from error
        found[f"{stem}.{kind}"] = value
    return found
