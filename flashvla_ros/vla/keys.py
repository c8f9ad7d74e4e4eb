"""Which tensor of an official checkpoint fills which parameter of this package's model.

Inside the towers, the projector and the decoder both have the same names and shapes, so only the prefixes of the
towers differ.
"""

from __future__ import annotations

import dataclasses

from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.model import PrismaticVLM

EMBEDDING, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"  # the last one
TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor.

    Attributes:
        shape: Its shape, here and there.
        ours: The parameter of :class:`PrismaticVLM` that it fills.
    """

    shape: tuple[int, ...]
    ours: str


def entries(model: PrismaticVLM) -> dict[str, Entry]:
    """Return the entries of every official tensor that `model` uses, by official name; a tied head is not one."""
    return {
        _official_name(ours): Entry(tuple(tensor.shape), ours)
        for ours, tensor in model.state_dict().items()
        if not (ours == HEAD and model.config.tied)
    }


def is_unused(name: str, config: OpenVLAConfig) -> bool:
    """Say whether an official tensor has no part in the features or actions.

    These are each tower's last block, final norm and pooling head, and buffers that old releases saved.
    """
    if name.endswith("rotary_emb.inv_freq") or (config.tied and name == HEAD):
        return True
    return any(
        name.startswith((f"{prefix}blocks.{tower.num_hidden_layers - 1}.", f"{prefix}norm.", f"{prefix}attn_pool."))
        for prefix, tower in zip(TOWERS, config.towers, strict=False)
    )


def _official_name(ours: str) -> str:
    if not ours.startswith("towers."):
        return ours
    _, index, name = ours.split(".", 2)
    return TOWERS[int(index)] + name
