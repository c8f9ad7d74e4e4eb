"""OpenVLA-OFT's modules beside the network: the head that regresses a chunk, and the projector of the robot's state."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_BLOCKS = 2


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., w] to [..., w]."""
        return hidden + self.ffn(hidden)


class L1Head(nn.Module):
    """Regresses one time step from the hidden states of its D rows, side by side.

    Args:
        size: D · d, what it reads for a time step.
        width: Of its hidden layers.
        actions: D.
    """

    def __init__(self, size: int, width: int, actions: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(_BLOCKS))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, actions)

    def forward(self, rows: Tensor) -> Tensor:
        """Map [..., T, D · d] to normalised actions [..., T, D], which have no bounds."""
        hidden = functional.relu(self.fc1(self.layer_norm1(rows)))
        for block in self.mlp_resnet_blocks:
            hidden = block(hidden)
        return self.fc2(self.layer_norm2(hidden))


class ProprioProjector(nn.Module):
    """Makes one row of the sequence of the robot's state.

    Args:
        size: P, values of the state.
        width: d.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        """Map a normalised state [..., P] to [..., d]."""
        return self.fc2(functional.gelu(self.fc1(state)))


def empty_head(tensors: dict[str, Tensor], width: int) -> L1Head | None:
    """Return a head of the sizes that a file's tensors have, without memory; None where it is no head of `width`."""
    first, last = tensors.get("fc1.weight"), tensors.get("fc2.weight")
    if first is None or last is None or {first.ndim, last.ndim} != {2} or first.shape[1] != width * len(last):
        return None
    with torch.device("meta"):
        return L1Head(first.shape[1], len(first), len(last))
