"""Scores of visual tokens: how much each contributes."""

from __future__ import annotations

import torch
from torch import Tensor


def information_contribution(tokens: Tensor, rank: int = 0) -> Tensor:
    """Information contribution score of each row of tokens [N, d], in float32 (FlashVLA, arXiv 2505.21200).

    With T = UΣVᵀ, row x scores Σᵢ |u_xi σᵢ| over the first `rank` singular values (0: all). Since UΣ = TV, the
    eigenvectors of the smaller of the Gram matrices TTᵀ = UΣ²Uᵀ and TᵀT = VΣ²Vᵀ give it without the decomposition.
    """
    rows = tokens.float()
    if rows.shape[0] <= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        basis = vectors * values.clamp(min=0).sqrt()
    else:
        basis = rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors
    largest = basis if rank == 0 else basis[:, -rank:]  # eigh sorts ascending
    return largest.abs().sum(dim=1)


def centred(tokens: Tensor) -> Tensor:
    """Rows [N, d] less their mean, in float32."""
    rows = tokens.float()
    return rows - rows.mean(dim=0)


def row_norm(tokens: Tensor) -> Tensor:
    """Euclidean norm of each row of tokens [N, d], in float32."""
    return tokens.float().norm(dim=1)
