"""The demo policy's architecture: OpenVLA's parts and layout at sizes that two CPU cores can train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.shapes import DINOV2, SIGLIP, TowerConfig
from flashvla_ros.vla.tokenizer import build_tokenizer
from training.words import ROBOT_WORDS

DATASET = "metaworld"  # key of norm_stats
METRES = 0.01  # Meta-World's action 1 moves the hand's set point by this much in one tick
VOCABULARY = 1216  # ids without padding
PADDING = 64


@dataclasses.dataclass(frozen=True)
class DemoSize:
    """Sizes that matter for speed and capacity.

    Attributes:
        image_size: Side of the image in pixels; (image_size / patch_size)² visual tokens.
        tower_layers: Blocks of each tower that are run; the checkpoint counts the unused last one too.
    """

    image_size: int = 108
    patch_size: int = 9
    tower_width: int = 96
    tower_layers: int = 3
    tower_heads: int = 2
    decoder_width: int = 128
    decoder_layers: int = 4
    decoder_heads: int = 2

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


def demo_config(size: DemoSize, statistics: dict[str, Any] | None = None) -> OpenVLAConfig:
    """Return the checkpoint's configuration: DINOv2 with registers, SigLIP, Llama.

    Args:
        size: Of its parts.
        statistics: norm_stats; None: Meta-World's.
    """
    vit: dict[str, Any] = {
        "image_size": size.image_size,
        "patch_size": size.patch_size,
        "hidden_size": size.tower_width,
        "num_hidden_layers": size.tower_layers + 1,
        "num_attention_heads": size.tower_heads,
        "intermediate_size": 4 * size.tower_width,
    }
    text = {
        "vocab_size": VOCABULARY + PADDING,
        "hidden_size": size.decoder_width,
        "intermediate_size": 3 * size.decoder_width,
        "num_hidden_layers": size.decoder_layers,
        "num_attention_heads": size.decoder_heads,
        "num_key_value_heads": size.decoder_heads,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return OpenVLAConfig(
        vision_backbone_id=f"dinosiglip-demo-{size.image_size}px",
        towers=(TowerConfig(DINOV2, num_register_tokens=4, **vit), TowerConfig(SIGLIP, **vit)),
        text_config=text,
        norm_stats=statistics or {DATASET: action_statistics()},
        image_resize_strategy="resize-naive",
        llm_backbone_id="llama-demo",
        pad_token_id=VOCABULARY,
        pad_to_multiple_of=PADDING,
    )


def action_statistics() -> dict[str, Any]:
    """Return norm_stats of the data set: metres in one tick for x, y and z, and the gripper from -1 to 1."""
    high = [METRES, METRES, METRES, 1.0]
    return {"action": {"q01": [-value for value in high], "q99": high, "mask": [True] * len(high)}}


def demo_tokenizer(instructions: Iterable[str]) -> Tokenizer:
    """Learn a tokenizer from instructions and from :data:`ROBOT_WORDS`; the same arguments give the same one."""
    prompts = [f"In: What action should the robot take to {line}?\nOut:" for line in sorted(instructions)]
    return build_tokenizer(prompts + ROBOT_WORDS.split(), VOCABULARY)
