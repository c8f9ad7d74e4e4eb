"""The two kinds of vision tower, from transformers' modules, up to the second-to-last block of the official ones.

OpenVLA reads its features from the second-to-last block, before the final norm, so the last block, the final norm and
the pooling head of a published tower do nothing; they are not built here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, SiglipVisionConfig, SiglipVisionModel

from flashvla_ros.vla.config import DINOV2, TowerConfig


class DinoTower(nn.Module):
    """DINOv2 with registers."""

    def __init__(self, config: TowerConfig, attention: str) -> None:
        super().__init__()
        self.config = config
        self.model = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers - 1,
                num_attention_heads=config.num_attention_heads,
                mlp_ratio=config.intermediate_size // config.hidden_size,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
                image_size=config.image_size,
                patch_size=config.patch_size,
                num_register_tokens=config.num_register_tokens,
                attn_implementation=attention,
            )
        )
        self.model.layernorm = nn.Identity()
        del self.model.embeddings.mask_token

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images [B, 3, S, S] to patch features [B, N, d]; class and register tokens are left out."""
        hidden = self.model.embeddings(pixel_values)
        for layer in self.model.encoder.layer:
            hidden = layer(hidden)
        return hidden[:, 1 + self.config.num_register_tokens :]


class SiglipTower(nn.Module):
    """SigLIP, which has neither class token nor registers."""

    def __init__(self, config: TowerConfig, attention: str) -> None:
        super().__init__()
        self.config = config
        self.model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers - 1,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_act=config.hidden_act,
                layer_norm_eps=config.layer_norm_eps,
                image_size=config.image_size,
                patch_size=config.patch_size,
                vision_use_head=False,
                attn_implementation=attention,
            )
        )
        self.model.post_layernorm = nn.Identity()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images [B, 3, S, S] to patch features [B, N, d]."""
        hidden = self.model.embeddings(pixel_values)
        for layer in self.model.encoder.layers:
            hidden = layer(hidden, None)
        return hidden


def build_tower(config: TowerConfig, attention: str) -> nn.Module:
    """Build one tower with random weights and the given attention implementation."""
    return DinoTower(config, attention) if config.model_type == DINOV2 else SiglipTower(config, attention)


class Projector(nn.Module):
    """Maps patch features to the decoder's width: three GELU layers for two towers, two for one."""

    def __init__(self, vision_size: int, hidden_size: int, fused: bool) -> None:
        super().__init__()
        inner = 4 * vision_size if fused else hidden_size
        self.fc1 = nn.Linear(vision_size, inner)
        self.fc2 = nn.Linear(inner, hidden_size)
        self.fc3 = nn.Linear(hidden_size, hidden_size) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, N, d_vision] to [B, N, d]."""
        hidden = self.fc2(nn.functional.gelu(self.fc1(features)))
        return hidden if self.fc3 is None else self.fc3(nn.functional.gelu(hidden))


def concatenate_features(towers: nn.ModuleList, pixel_values: Tensor) -> Tensor:
    """Run each tower on its own three channels of [B, 3 * towers, S, S]; return [B, N, sum of widths]."""
    images = pixel_values.split(3, dim=1)
    return torch.cat([tower(image) for tower, image in zip(towers, images, strict=True)], dim=2)
