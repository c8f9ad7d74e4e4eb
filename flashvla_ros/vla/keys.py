"""How the tensors of an official checkpoint, named as timm names them, become those of this package's model.

Each :class:`Entry` pairs one official tensor with what it fills here, and works in both directions.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from flashvla_ros.vla.config import DINOV2, OpenVLAConfig, TowerConfig
from flashvla_ros.vla.model import OpenVLA

Shape = tuple[int, ...]


class Form(enum.Enum):
    """How the official tensor differs from ours, besides its name."""

    SAME = enum.auto()
    FUSED_QKV = enum.auto()  # query, key and value projections stacked in one
    PATCH_POSITIONS = enum.auto()  # timm's DINOv2 has no position embedding for the class token; ours is zero there
    CLASS_TOKEN = enum.auto()  # takes up what training may have put into that position embedding
    NO_BATCH = enum.auto()  # [1, N, d] where ours is [N, d]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor.

    Attributes:
        official: Its name in the checkpoint.
        shape: Its shape in the checkpoint.
        ours: Parameters of :class:`OpenVLA` that it fills; a class token also reads the second one when saved.
    """

    official: str
    shape: Shape
    ours: tuple[str, ...]
    form: Form = Form.SAME

    def load(self, tensor: Tensor) -> dict[str, Tensor]:
        """Turn the official tensor into ours."""
        match self.form:
            case Form.FUSED_QKV:
                return dict(zip(self.ours, tensor.chunk(3), strict=True))
            case Form.PATCH_POSITIONS:
                return {self.ours[0]: torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)}
            case Form.NO_BATCH:
                return {self.ours[0]: tensor[0]}
        return {self.ours[0]: tensor}

    def save(self, state: Mapping[str, Tensor]) -> Tensor:
        """Make the official tensor from ours."""
        tensors = [state[name] for name in self.ours]
        match self.form:
            case Form.FUSED_QKV:
                return torch.cat(tensors)
            case Form.PATCH_POSITIONS:
                return tensors[0][:, 1:]
            case Form.CLASS_TOKEN:
                return tensors[0] + tensors[1][:, :1]
            case Form.NO_BATCH:
                return tensors[0][None]
        return tensors[0]


def entries(model: OpenVLA) -> dict[str, Entry]:
    """Return the entries of every official tensor that `model` uses, by official name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found: list[Entry] = []
    for index, tower in enumerate(model.config.towers):
        pairs = _dino(tower) if tower.model_type == DINOV2 else _siglip(tower)
        for official, ours, form in pairs:
            names = tuple(f"towers.{index}.model.{name}" for name in ours)
            found.append(Entry(_tower_prefix(index) + official, _official_shape(shapes, names, form), names, form))
    used = {name for entry in found for name in entry.ours}
    found += [Entry(name, shape, (name,)) for name, shape in shapes.items() if name not in used]
    return {entry.official: entry for entry in found}


def is_unused(name: str, config: OpenVLAConfig) -> bool:
    """Say whether an official tensor has no part in the features or actions.

    These are each tower's last block, final norm and pooling head, and buffers that old releases saved.
    """
    if name.endswith("rotary_emb.inv_freq"):
        return True
    for index, tower in enumerate(config.towers):
        last = f"blocks.{tower.num_hidden_layers - 1}."
        if name.startswith(tuple(_tower_prefix(index) + part for part in (last, "norm.", "attn_pool."))):
            return True
    return False


def _tower_prefix(index: int) -> str:
    return ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")[index]


def _official_shape(shapes: Mapping[str, Shape], names: tuple[str, ...], form: Form) -> Shape:
    first = shapes[names[0]]
    match form:
        case Form.FUSED_QKV:
            return (3 * first[0], *first[1:])
        case Form.PATCH_POSITIONS:
            return (first[0], first[1] - 1, first[2])
        case Form.NO_BATCH:
            return (1, *first)
    return first


def _parameters(official: str, ours: Iterable[str], form: Form = Form.SAME) -> Iterator[tuple[str, list[str], Form]]:
    """Weight and bias of a layer."""
    ours = list(ours)
    for part in ("weight", "bias"):
        yield f"{official}.{part}", [f"{name}.{part}" for name in ours], form


def _dino(tower: TowerConfig) -> Iterator[tuple[str, list[str], Form]]:
    positions = "embeddings.position_embeddings"
    yield "cls_token", ["embeddings.cls_token", positions], Form.CLASS_TOKEN
    yield "reg_token", ["embeddings.register_tokens"], Form.SAME
    yield "pos_embed", [positions], Form.PATCH_POSITIONS
    yield from _parameters("patch_embed.proj", ["embeddings.patch_embeddings.projection"])
    for index in range(tower.num_hidden_layers - 1):
        block, layer = f"blocks.{index}", f"encoder.layer.{index}"
        qkv = [f"{layer}.attention.{part}_proj" for part in "qkv"]
        yield from _parameters(f"{block}.norm1", [f"{layer}.norm1"])
        yield from _parameters(f"{block}.attn.qkv", qkv, Form.FUSED_QKV)
        yield from _parameters(f"{block}.attn.proj", [f"{layer}.attention.o_proj"])
        yield f"{block}.ls1.scale_factor", [f"{layer}.layer_scale1.lambda1"], Form.SAME
        yield from _parameters(f"{block}.norm2", [f"{layer}.norm2"])
        yield from _parameters(f"{block}.mlp.fc1", [f"{layer}.mlp.fc1"])
        yield from _parameters(f"{block}.mlp.fc2", [f"{layer}.mlp.fc2"])
        yield f"{block}.ls2.scale_factor", [f"{layer}.layer_scale2.lambda1"], Form.SAME


def _siglip(tower: TowerConfig) -> Iterator[tuple[str, list[str], Form]]:
    yield "pos_embed", ["embeddings.position_embedding.weight"], Form.NO_BATCH
    yield from _parameters("patch_embed.proj", ["embeddings.patch_embedding"])
    for index in range(tower.num_hidden_layers - 1):
        block, layer = f"blocks.{index}", f"encoder.layers.{index}"
        qkv = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
        yield from _parameters(f"{block}.norm1", [f"{layer}.layer_norm1"])
        yield from _parameters(f"{block}.attn.qkv", qkv, Form.FUSED_QKV)
        yield from _parameters(f"{block}.attn.proj", [f"{layer}.self_attn.out_proj"])
        yield from _parameters(f"{block}.norm2", [f"{layer}.layer_norm2"])
        yield from _parameters(f"{block}.mlp.fc1", [f"{layer}.mlp.fc1"])
        yield from _parameters(f"{block}.mlp.fc2", [f"{layer}.mlp.fc2"])
