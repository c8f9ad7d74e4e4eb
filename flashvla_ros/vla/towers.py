"""The two kinds of vision tower up to the second-to-last block of the official ones, and the projector behind them.

OpenVLA reads its features from the second-to-last block, before the final norm, so the last block, the final norm and
the pooling head of a published tower do nothing; they are not built here. Parameters have the names and shapes that
timm gives them, and so an official checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashvla_ros.vla.attention import Attend, attention
from flashvla_ros.vla.shapes import ACTIVATIONS, DINOV2, TowerConfig

_INITIAL_STD = 0.02  # of a tower that is trained from scratch


class LayerScale(nn.Module):
    """Multiplies each channel by a factor of its own."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scale [B, L, d]."""
        return hidden * self.scale_factor


class VisionBlock(nn.Module):
    """One block: attention among all tokens, then an MLP, each behind a norm and added to its input."""

    def __init__(self, config: TowerConfig, attend: Attend) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        scaled = config.model_type == DINOV2
        self._heads, self._attend, self._activation = config.num_attention_heads, attend, ACTIVATIONS[config.hidden_act]
        self.norm1 = nn.LayerNorm(size, eps=eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(size, 3 * size), "proj": nn.Linear(size, size)})
        self.ls1 = LayerScale(size) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(size, eps=eps)
        inner = config.intermediate_size
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(size, inner), "fc2": nn.Linear(inner, size)})
        self.ls2 = LayerScale(size) if scaled else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [B, L, d] to [B, L, d]."""
        return self.fed(self.attended(hidden))

    def attended(self, hidden: Tensor) -> Tensor:
        """Return hidden [B, L, d] with what attention adds."""
        batch, length, size = hidden.shape
        rows = self.attn["qkv"](self.norm1(hidden)).view(batch, length, 3, self._heads, -1)
        attended = self._attend(*rows.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(batch, length, size)
        return hidden + self.ls1(self.attn["proj"](attended))

    def fed(self, hidden: Tensor) -> Tensor:
        """Return hidden [B, L, d] with what the MLP adds."""
        return hidden + self.ls2(self.mlp["fc2"](self._activation(self.mlp["fc1"](self.norm2(hidden)))))


class VisionTower(nn.Module):
    """DINOv2 with registers, or SigLIP, which has neither class token nor registers."""

    def __init__(self, config: TowerConfig, implementation: str) -> None:
        super().__init__()
        self.config = config
        size, patch = config.hidden_size, config.patch_size
        if config.model_type == DINOV2:
            self.cls_token = nn.Parameter(torch.empty(1, 1, size))
            self.reg_token = nn.Parameter(torch.empty(1, config.num_register_tokens, size))
        self.pos_embed = nn.Parameter(torch.empty(1, config.tokens, size))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size, kernel_size=patch, stride=patch)})
        attend = attention(implementation)
        self.blocks = nn.ModuleList(VisionBlock(config, attend) for _ in range(config.num_hidden_layers - 1))
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=_INITIAL_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images [B, 3, S, S] to patch features [B, N, d]; class and register tokens are left out."""
        hidden = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2) + self.pos_embed
        ahead = [self.cls_token, self.reg_token] if self.config.model_type == DINOV2 else []
        hidden = torch.cat([*(token.expand(len(hidden), -1, -1) for token in ahead), hidden], dim=1)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden[:, hidden.shape[1] - self.config.tokens :]


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
        hidden = self.fc2(functional.gelu(self.fc1(features)))
        return hidden if self.fc3 is None else self.fc3(functional.gelu(hidden))
