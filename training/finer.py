"""Weights of a policy that sees few large patches, made into those of one that sees more and smaller ones.

A step with 64 visual tokens takes a quarter of the time of one with 256, so a long training begins coarse. Blocks and
decoder keep their weights; what hangs on the grid of patches is resampled.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from training.architecture import DemoSize


def finer(weights: Mapping[str, Tensor], before: DemoSize, after: DemoSize) -> dict[str, Tensor]:
    """Return the weights of a model, or of its state head, for another size of patch.

    Args:
        weights: By name.
        before: Sizes that they belong to.
        after: Sizes that are wanted; they differ in the patch alone, which divides the other.
    """
    if before.patch_size == after.patch_size:
        return dict(weights)
    resampled = {
        "pos_embed": functools.partial(_positions, before=before.grid, after=after.grid),
        "patch_embed.proj.weight": functools.partial(_kernel, size=after.patch_size),
        "linear.weight": functools.partial(_shared, before=before.grid, after=after.grid),
    }
    return {
        name: next((change(value) for end, change in resampled.items() if name.endswith(end)), value)
        for name, value in weights.items()
    }


def _positions(embedding: Tensor, before: int, after: int) -> Tensor:
    """Interpolate position embeddings [1, N, d] to the new grid."""
    grid = embedding.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    return functional.interpolate(grid, size=(after, after), mode="bicubic").flatten(2).transpose(1, 2)


def _kernel(kernel: Tensor, size: int) -> Tensor:
    """Return the kernel [d, 3, size, size] that maps a patch to what the old one makes of it enlarged.

    FlexiViT (arXiv 2212.08013), eq. 3.
    """
    pixels = torch.eye(size * size, dtype=kernel.dtype).view(size * size, 1, size, size)
    enlarged = functional.interpolate(pixels, size=kernel.shape[-2:], mode="bilinear").flatten(1)
    return (kernel.flatten(2) @ enlarged.T).reshape(*kernel.shape[:2], size, size)


def _shared(weight: Tensor, before: int, after: int) -> Tensor:
    """Let the patches that make up one old patch share its weights in a read-out [A, N · d] of all patches."""
    times = after // before
    grid = weight.reshape(len(weight), before, before, -1)
    grid = grid.repeat_interleave(times, 1).repeat_interleave(times, 2) / times**2
    return grid.flatten(1)
