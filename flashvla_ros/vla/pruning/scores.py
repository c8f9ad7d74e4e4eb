"""Scores of visual tokens: how much each contributes."""

from __future__ import annotations

from torch import Tensor

from flashvla_ros.vla.pruning.eigen import eigh_by_lapack, eigh_by_products


def information_contribution(tokens: Tensor, rank: int = 0) -> Tensor:
    """Information contribution score of each row of tokens [N, d] (FlashVLA, arXiv 2505.21200).

    With T = UΣVᵀ, row x scores Σᵢ |u_xi σᵢ| over the first `rank` singular values (0: all). Since UΣ = TV, the
    eigenvectors of the smaller of the Gram matrices TTᵀ = UΣ²Uᵀ and TᵀT = VΣ²Vᵀ give it without the decomposition.

    On the CPU LAPACK finds them in float64, and the kept sets are those of the decomposition in float64: squaring T
    costs half the digits, so in float32 what lies below 3e-4 of the largest singular value is noise, and exchanges
    tokens whose scores differ by less than about 6e-3 of the highest. On a GPU, where :func:`.eigen.eigh_by_products`
    finds them in float32 so that the host need not wait, that is still so.
    """
    rows = wide(tokens)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    values, vectors = eigh_by_lapack(gram) if gram.device.type == "cpu" else eigh_by_products(gram)
    return contribution_along(rows, values, vectors, rank)


def wide(tokens: Tensor) -> Tensor:
    """Return tokens in the type that scores are computed in: float64 on the CPU, float32 elsewhere."""
    return tokens.double() if tokens.device.type == "cpu" else tokens.float()


def contribution_along(rows: Tensor, values: Tensor, vectors: Tensor, rank: int = 0) -> Tensor:
    """Score of each of rows [N, d], given eigenvalues and eigenvectors, in any order, of the smaller Gram matrix."""
    basis = vectors * values.clamp(min=0).sqrt() if rows.shape[0] <= rows.shape[1] else rows @ vectors
    if rank:
        basis = basis.index_select(1, values.topk(min(rank, len(values))).indices)
    return basis.abs().sum(dim=1)


def centred(tokens: Tensor) -> Tensor:
    """Rows [N, d] less their mean."""
    rows = wide(tokens)
    return rows - rows.mean(dim=0)


def row_norm(tokens: Tensor) -> Tensor:
    """Euclidean norm of each row of tokens [N, d], in float32."""
    return tokens.float().norm(dim=1)
