"""From one decoder layer's tensors to the visual tokens that are kept: the methods by their parameter's name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.pruning.scores import information_contribution, row_norm

_MASK_64 = (1 << 64) - 1


@dataclasses.dataclass(frozen=True)
class LayerView:
    """What a method may look at: the rows of the N visual tokens, each [N, d].

    Attributes:
        embeddings: Output of the projector.
        attention: Self-attention output of decoder layer ``pruning.layer - 1``, after its output projection and before
            it is added to the residual stream.
        hidden: Hidden state after that layer.
    """

    embeddings: Tensor
    attention: Tensor
    hidden: Tensor


# View, number to keep k, settings, key of this observation → ascending indices [k].
Selector = Callable[[LayerView, int, PruningSettings, int], Tensor]
Score = Callable[[LayerView, PruningSettings], Tensor]  # [N]


def kept_count(keep_ratio: float, count: int) -> int:
    """Return k, the number of `count` tokens that are kept; at least one."""
    return min(max(math.floor(keep_ratio * count + 0.5), 1), count)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Return the ascending indices [k] of the highest scores [N]; of equal ones the first counts as higher."""
    return scores.argsort(descending=True, stable=True)[:k].sort().values


def _by_score(score: Score) -> Selector:
    def select(view: LayerView, k: int, settings: PruningSettings, _key: int) -> Tensor:
        return top_k(score(view, settings), k)

    return select


def _random(view: LayerView, k: int, settings: PruningSettings, key: int) -> Tensor:
    """Choose by a seed made of ``pruning.seed`` and the observation, so that a replay chooses the same tokens."""
    generator = torch.Generator().manual_seed((settings.seed * 0x9E3779B97F4A7C15 + key) & _MASK_64)
    return torch.randperm(len(view.embeddings), generator=generator)[:k].sort().values.to(view.embeddings.device)


SELECTORS: Mapping[str, Selector] = {
    "ics": _by_score(lambda view, settings: information_contribution(view.attention, settings.rank)),
    "ics_hidden": _by_score(lambda view, settings: information_contribution(view.hidden, settings.rank)),
    "norm": _by_score(lambda view, _settings: row_norm(view.attention)),
    "random": _random,
}


def check_layer(settings: PruningSettings, depth: int) -> None:
    """Refuse, with :class:`SettingsError`, a layer that a decoder of `depth` layers does not have."""
    if settings.method != "none" and settings.layer >= depth:
        raise SettingsError(
            f"pruning.layer must be below {depth}, the number of this checkpoint's decoder layers, got {settings.layer}"
        )
