"""UniVLA's action decoder: pools the hidden states of latent actions and image, and makes a chunk of the result.

Names are those of its files. It is computed in float32, whatever the network is computed in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flashvla_ros.vla.parts import Tensors

_HEAD = 64  # size of an attention head


class RootMeanSquare(nn.Module):
    """x / rms(x) · g."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., e] to [..., e]."""
        norm = hidden.norm(dim=-1, keepdim=True) * hidden.shape[-1] ** -0.5
        return hidden / norm.clamp(min=1e-8) * self.g


class GatedUnit(nn.Module):
    """p · SiLU(g) of one projection's two halves."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, 2 * inner)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., e] to [..., m]."""
        value, gate = self.project(hidden).chunk(2, dim=-1)
        return value * functional.silu(gate)


class AttentionPool(nn.Module):
    """Makes one row of any number of rows, in whatever order: a learned seed attends to them.

    Args:
        width: d of the rows.
        size: e of the result.
        inner: Of its MLP.
    """

    def __init__(self, width: int, size: int, inner: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(1, size))
        self.projection = nn.Linear(width, size)
        self.attn = nn.ModuleDict(
            {
                "q": nn.Linear(size, size, bias=False),
                "kv": nn.Linear(size, 2 * size, bias=False),
                "proj": nn.Linear(size, size),
            }
        )
        self.attn_norm, self.mlp_norm = RootMeanSquare(size), RootMeanSquare(size)
        self.mlp = nn.Sequential(GatedUnit(size, inner), nn.Linear(inner, size))

    def forward(self, rows: Tensor, start: Tensor | None = None, counted: Tensor | None = None) -> Tensor:
        """Pool rows [M, d], those where `counted` [M] is false left out: [e]; `start` [e] is added to the seed."""
        seed = self.latents if start is None else self.latents + start  # [1, e]
        query = self.attn["q"](seed).view(1, -1, _HEAD).transpose(0, 1)  # [h, 1, 64]
        keys, values = self.attn["kv"](self.projection(rows)).view(len(rows), 2, -1, _HEAD).permute(1, 2, 0, 3)
        scores = query @ (keys.transpose(1, 2) * _HEAD**-0.5)  # [h, 1, M]
        if counted is not None:
            scores = scores.masked_fill(~counted, -torch.inf)
        pooled = (scores.softmax(dim=-1) @ values).reshape(1, -1)
        hidden = self.attn_norm(seed + self.attn["proj"](pooled))
        return self.mlp_norm(hidden + self.mlp(hidden))[0]


class ActionDecoder(nn.Module):
    """Makes a chunk, for simulated arms with tanh, for a real one with its state and without.

    Args:
        pools: Name of the latent actions' pool, then the visual one's, each with width, size and inner size.
        actions: T · D.
        state: P values of the robot's state; 0: it is not told of it.
    """

    def __init__(self, pools: dict[str, tuple[int, int, int]], actions: int, state: int) -> None:
        super().__init__()
        self._latents = next(iter(pools))
        for name, sizes in pools.items():
            self.add_module(name, AttentionPool(*sizes))
        size = pools[self._latents][1]
        if state:
            self.proprio_proj = nn.Sequential(nn.Linear(state, size), nn.GELU(), nn.Linear(size, size))
        self.proj = nn.Sequential(nn.Linear(2 * size if state else size, actions))
        self.told = bool(state)

    def forward(self, latents: Tensor, visual: Tensor, counted: Tensor | None, state: Tensor | None) -> Tensor:
        """Make normalised actions [T · D] of latent rows [4, d], visual rows [M, d] and the robot's state [P]."""
        seen = self.get_submodule("visual_pool")(visual, counted=counted)
        pooled = self.get_submodule(self._latents)(latents, seen)
        if state is None:
            return self.proj(pooled).tanh()
        return self.proj(torch.cat([pooled, self.proprio_proj(state)]))


def empty_decoder(tensors: Tensors, width: int) -> ActionDecoder | None:
    """Return a decoder of the sizes that a file's tensors have, without memory; None where it is no known kind."""
    try:
        told = "proprio_proj.0.weight" in tensors
        pools = {
            name: (width, tensors[f"{name}.latents"].shape[1], tensors[f"{name}.mlp.1.weight"].shape[1])
            for name in ("attn_pool" if told else "latent_action_pool", "visual_pool")
        }
        state = tensors["proprio_proj.0.weight"].shape[1] if told else 0
        sizes = {size for _, size, _ in pools.values()}
        if len(sizes) > 1 or not min(sizes) or min(sizes) % _HEAD:
            return None
        with torch.device("meta"):
            return ActionDecoder(pools, tensors["proj.0.weight"].shape[0], state)
    except (KeyError, IndexError):
        return None
