"""How UniVLA's official code draws latent action tokens: transformers' sampling with its defaults, seeded here."""

from __future__ import annotations

import torch
from torch import Tensor

from flashvla_ros.vla.model import likeliest

TEMPERATURE, TOP_K, TOP_P = 0.75, 50, 0.9


def shares(logits: Tensor, without: int) -> tuple[Tensor, Tensor]:
    """Return the ids [k] that logits [vocabulary] leave to be drawn, and how often each is, likeliest first.

    The logits are divided by the temperature, all but the 50 greatest are dropped, and of these the likeliest stay
    that reach 90 % together; `without` is never drawn.
    """
    scaled = logits.float() / TEMPERATURE
    scaled[without] = -torch.inf
    values, ids = scaled.topk(min(TOP_K, len(scaled)))
    share = values.softmax(dim=-1)
    share = torch.where(share.cumsum(dim=-1) - share < TOP_P, share, 0.0)
    return ids, share / share.sum()


class Sampler:
    """Draws one token after the other; the same seed draws the same ones.

    Args:
        seed: Of one inference.
        without: A token that is never drawn.
    """

    def __init__(self, seed: int, without: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._without = without

    def __call__(self, logits: Tensor) -> int:
        """Draw after logits [vocabulary]; :data:`..model.NOTHING` where they say nothing."""
        token = int(likeliest(logits, self._without))
        if token < 0:
            return token
        ids, share = shares(logits, self._without)
        return int(ids[torch.multinomial(share.cpu(), 1, generator=self._generator)])
