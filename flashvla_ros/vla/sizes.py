"""A checkpoint's sizes in the form that :mod:`flashvla_ros.core.flops` counts with."""

from __future__ import annotations

from flashvla_ros.core.flops import DecoderSize, ModelSize, TowerSize
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.shapes import DINOV2, TowerConfig


def model_size(config: OpenVLAConfig) -> ModelSize:
    """Return the sizes of a model as it is built here: of each tower the last block is not run."""
    llama = config.llama()
    vision, width = config.vision_size, llama.hidden_size
    fused = ((vision, 4 * vision), (4 * vision, width), (width, width))
    return ModelSize(
        towers=tuple(_tower_size(tower) for tower in config.towers),
        projector=fused if config.fused else ((vision, width), (width, width)),
        decoder=DecoderSize(llama.num_hidden_layers, width, llama.intermediate_size),
        kv_width=llama.groups * llama.head_size,
        vocabulary=llama.vocab_size,
        images=config.num_images_in_input,
    )


def _tower_size(tower: TowerConfig) -> TowerSize:
    return TowerSize(
        layers=tower.num_hidden_layers - 1,
        width=tower.hidden_size,
        inner=tower.intermediate_size,
        patches=tower.tokens,
        extra=1 + tower.num_register_tokens if tower.model_type == DINOV2 else 0,
        pixels=3 * tower.patch_size**2,
    )
