"""Small random checkpoints in OpenVLA's layout, for tests of whatever needs a model that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flashvla_ros.vla.attention import SdpaAttention
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.processor import format_prompt
from flashvla_ros.vla.shapes import DINOV2, SIGLIP, TowerConfig
from flashvla_ros.vla.tokenizer import build_tokenizer
from training.saving import save_checkpoint

VOCABULARY = 1024
NORM_STATS: dict[str, Any] = {
    "toy": {"action": {"q01": [-0.01, -0.01, -0.01, -1.0], "q99": [0.01, 0.01, 0.01, 1.0], "mask": [True] * 4}}
}


def tiny_config(*, fused: bool = True, layers: int = 4, image_size: int = 56, **changes: Any) -> OpenVLAConfig:
    """Return a configuration of (image_size / 14)² visual tokens and four action dimensions."""
    sizes = {"image_size": image_size, "patch_size": 14, "hidden_size": 32, "num_attention_heads": 2}
    dino = TowerConfig(DINOV2, num_hidden_layers=3, intermediate_size=64, num_register_tokens=4, **sizes)
    siglip = TowerConfig(SIGLIP, num_hidden_layers=4, intermediate_size=72, **sizes)
    text = {
        "vocab_size": VOCABULARY + 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
    }
    values = {"image_resize_strategy": "resize-naive", "pad_token_id": VOCABULARY, "norm_stats": NORM_STATS, **changes}
    return OpenVLAConfig("tiny", (dino, siglip) if fused else (siglip,), text, **values)


def random_model(config: OpenVLAConfig, seed: int = 0) -> PrismaticVLM:
    """Return a model whose signals are of order one and whose likeliest tokens are actions."""
    model = PrismaticVLM(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = 1 if "embed" in name else parameter[0].numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.1, generator=generator)
    head = model.language_model.lm_head.weight
    head[: config.action_vocab_size - 255] = 0.0
    head[config.action_vocab_size :] = 0.0
    return model


class LostMask(SdpaAttention):
    """Broken on purpose: causal where it must not be, and full where it must be causal."""

    def __call__(self, *heads: torch.Tensor, causal: bool = False) -> torch.Tensor:
        return super().__call__(*heads, causal=not causal)


def write_checkpoint(folder: Path, config: OpenVLAConfig | None = None, *, seed: int = 0, **saving: Any) -> Path:
    """Write a random checkpoint and return its folder."""
    config = config or tiny_config()
    prompts = [format_prompt(words) for words in ("open the drawer", "close the drawer", "pick up the red block")]
    save_checkpoint(folder, random_model(config, seed), build_tokenizer(prompts, VOCABULARY), **saving)
    return folder
