"""What the policy learns: action tokens smeared over neighbouring bins, and where things are.

Where everything is, patch features must tell; where the thing is that the instruction names, the decoder's attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SPOT = 0.04  # standard deviation of where a thing is seen, as a share of the picture: a third of a can


def smeared_bins(actions: Tensor, bins: int, sigma: float) -> Tensor:
    """Return a Gaussian over the bins around each action.

    Plain cross-entropy treats a neighbouring bin as just as wrong as a far one and teaches a small model too little.

    Args:
        actions: [..., D] normalised actions in [-1, 1].
        bins: Number of equal bins over [-1, 1].
        sigma: Standard deviation in bins.

    Returns:
        [..., D, bins] probabilities that sum to 1 over the last axis.
    """
    position = (actions.clamp(-1.0, 1.0) + 1.0) * (bins / 2) - 0.5  # in units of bins, 0 at the first bin's centre
    centres = torch.arange(bins, device=actions.device, dtype=actions.dtype)
    return torch.softmax(-0.5 * ((centres - position[..., None]) / sigma) ** 2, dim=-1)


def action_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence [nats] of predicted action tokens from smeared targets.

    It is the cross-entropy less the targets' own entropy, so that 0 is the floor.

    Args:
        logits: [B, D, vocabulary without padding].
        target: [B, D, bins]; bin b is token ``vocabulary - 1 - b``, the order of OpenVLA.
    """
    bins = target.shape[-1]
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)[..., -bins:].flip(-1)
    return _divergence(target, log_probabilities)


def state_loss(predicted: Tensor, state: Tensor) -> Tensor:
    """Return the mean squared error of standardised states [B, A], where a state is not NaN."""
    known = ~state.isnan()
    return nn.functional.mse_loss(predicted[known], state[known])


def look_loss(attention: Tensor, seen: Tensor) -> Tensor:
    """Return the mean divergence [nats] of where action tokens look from where the named thing is seen.

    Without it a small policy learns to grasp and goes to the nearest thing: that a word and a patch belong together is
    a product of two, for which an action far from the object, saturated as it is, gives no slope.

    Args:
        attention: [B, A, N] logarithms of the attention of A tokens to the N visual ones, a square of patches.
        seen: [B, 2] row and column of the thing, as shares of the picture; NaN where there is nothing to know.
    """
    known = ~seen.isnan().any(1)
    side = math.isqrt(attention.shape[-1])
    centres = (torch.arange(side, device=seen.device) + 0.5) / side
    rows, columns = torch.softmax(-0.5 * ((centres - seen[known][..., None]) / SPOT) ** 2, dim=-1).unbind(1)
    target = (rows[:, :, None] * columns[:, None, :]).flatten(1)[:, None]
    return _divergence(target, attention[known])


def _divergence(target: Tensor, log_probabilities: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence [nats] over the last axis."""
    return (torch.xlogy(target, target) - target * log_probabilities).sum(-1).mean()


class StateHead(nn.Module):
    """A linear read-out of the scene's state from all patch features; it teaches the towers positions, then goes.

    Args:
        features: N times the width of the concatenated towers.
        size: Number of state variables.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, size)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patch features [B, N, d_vision] to standardised states [B, size]."""
        state: Tensor = self.linear(patches.flatten(1))
        return state


def random_subset(batch: int, count: int, keep: int, generator: torch.Generator) -> Tensor:
    """Return ascending indices [batch, keep] of a random subset of `count` visual tokens, one for each sample."""
    order = torch.rand(batch, count, generator=generator).argsort(dim=1)
    return order[:, :keep].sort(dim=1).values
