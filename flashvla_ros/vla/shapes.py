"""Sizes of the network's parts, checked: vision towers and decoder; and those of the published towers."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch.nn import functional

from flashvla_ros.core.errors import CheckpointError

DINOV2 = "dinov2_with_registers"
SIGLIP = "siglip_vision_model"
_MOST_LAYERS = 1000  # more take hours to build before the weights could say that they do not fit
_MOST = 1 << 20  # of any other size: what is built of larger ones has more values than a tensor can have

# One object each: torch.compile takes what a layer calls once for all layers.
ACTIVATIONS: Mapping[str, Callable[..., Any]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}


def _check_sizes(config: TowerConfig | DecoderConfig, where: str, least: Mapping[str, int]) -> None:
    """Refuse a field of another type, and an integer below that of `least`, or 1."""
    for field in dataclasses.fields(config):
        value, low = getattr(config, field.name), least.get(field.name, 1)
        if field.type == "int" and (type(value) is not int or value < low):
            raise CheckpointError(f"{field.name} of the {where} must be an integer of at least {low}, got {value!r}")
        if field.type == "float" and (type(value) not in (int, float) or not 0.0 < value <= sys.float_info.max):
            raise CheckpointError(f"{field.name} of the {where} must be a number above 0, got {value!r}")
        if field.type == "bool" and type(value) is not bool:
            raise CheckpointError(f"{field.name} of the {where} must be true or false, got {value!r}")
        most = _MOST_LAYERS if field.name == "num_hidden_layers" else _MOST
        if field.type == "int" and value > most:
            raise CheckpointError(f"{field.name} of the {where} is {value}, and no model has over {most}")
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"hidden_size {config.hidden_size} of the {where} is not a multiple of its "
            f"{config.num_attention_heads} attention heads"
        )
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"hidden_act of the {where} must be one of {', '.join(ACTIVATIONS)}, got {config.hidden_act!r}"
        )


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """Sizes of one vision transformer.

    Attributes:
        model_type: :data:`DINOV2` or :data:`SIGLIP`, transformers' names.
        image_size: Side of the square input, in pixels.
        num_hidden_layers: Blocks in the official checkpoint, of which the last one is not used.
        num_register_tokens: Registers of DINOv2; 0 for SigLIP.
        hidden_act: Activation of the MLP. OpenVLA's towers come from timm, where SigLIP has the exact GELU.
    """

    model_type: str
    image_size: int
    patch_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_register_tokens: int = 0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        where = f"{self.model_type} tower"
        if self.model_type not in (DINOV2, SIGLIP):
            raise CheckpointError(f"vision_config.model_type must be {DINOV2} or {SIGLIP}, got {self.model_type!r}")
        _check_sizes(self, where, {"num_register_tokens": 0, "num_hidden_layers": 2})
        if self.image_size < self.patch_size:
            raise CheckpointError(
                f"image_size {self.image_size} of the {where} is below its patch_size {self.patch_size}"
            )

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the Llama decoder, by the names of transformers' LlamaConfig.

    config.json leaves out what equals the defaults of the transformers release that wrote it (4.40): those are here.

    Attributes:
        num_key_value_heads: G, groups of heads that share keys and values; 0: each head has its own.
        head_dim: Channels of a head; 0: the width by the number of heads.
        max_position_embeddings: Longest sequence.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_theta: float = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self, "decoder", {"num_key_value_heads": 0, "head_dim": 0})
        if self.num_attention_heads % self.groups:
            raise CheckpointError(
                f"num_attention_heads {self.num_attention_heads} of the decoder is not a multiple of its "
                f"num_key_value_heads {self.groups}"
            )
        if self.head_size % 2:
            raise CheckpointError(f"head_dim of the decoder must be even to be turned, got {self.head_size}")

    @property
    def groups(self) -> int:
        """G, groups of heads that share keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """D, channels of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DecoderConfig:
        """Read a text_config, whose other fields say nothing about the network."""
        rotary: dict[str, Any] = {}
        for name in ("rope_parameters", "rope_scaling"):
            if not isinstance(found := data.get(name) or {}, dict):
                raise CheckpointError(f"{name} of the decoder must be an object, got {found!r}")
            rotary.update(found)
        if (kind := rotary.get("rope_type", rotary.get("type", "default"))) != "default":
            raise CheckpointError(f"the rotary embedding of the decoder must be the default one, got {kind!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        values = {"rope_theta": rotary.get("rope_theta"), **data}
        return cls(**{name: value for name, value in values.items() if name in known and value is not None})


def _vit_large(image_size: int) -> TowerConfig:
    return TowerConfig(DINOV2, image_size, 14, 1024, 24, 16, 4096, num_register_tokens=4)


def _so400m(image_size: int) -> TowerConfig:
    return TowerConfig(SIGLIP, image_size, 14, 1152, 27, 16, 4304)


KNOWN_BACKBONES: Mapping[str, tuple[TowerConfig, ...]] = {
    "dinosiglip-vit-so-224px": (_vit_large(224), _so400m(224)),
    "dinosiglip-vit-so-384px": (_vit_large(384), _so400m(384)),
    "siglip-vit-so400m": (_so400m(224),),
    "siglip-vit-so400m-384px": (_so400m(384),),
    "dinov2-vit-l": (_vit_large(224),),
}
