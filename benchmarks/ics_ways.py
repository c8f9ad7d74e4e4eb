"""Ways to the information contribution score, or near it, for :mod:`benchmarks.ics`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from flashvla_ros.vla.pruning.eigen import eigh_by_products
from flashvla_ros.vla.pruning.scores import contribution_along, row_norm

_LARGEST = 32  # singular values that the truncated way computes


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to score rows [N, d] in float32.

    Attributes:
        name: In tables.
        score: Rows to scores [N].
        recordable: Which kernels run depends on shapes alone, so that a CUDA graph can record it.
    """

    name: str
    score: Callable[[Tensor], Tensor]
    recordable: bool = True


def by_svd_64(rows: Tensor) -> Tensor:
    """The definition in float64."""
    left, values, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    return (left * values).abs().sum(dim=1)


def by_svd(rows: Tensor) -> Tensor:
    """The definition, without the right singular vectors that TokenCarve's code computes in full."""
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    return (left * values).abs().sum(dim=1)


def smaller_gram(rows: Tensor) -> Tensor:
    """TTᵀ or TᵀT, the smaller."""
    return rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows


def by_eigh(rows: Tensor) -> Tensor:
    """LAPACK's or cuSOLVER's eigenvectors of the smaller Gram matrix."""
    return contribution_along(rows, *torch.linalg.eigh(smaller_gram(rows)))


def by_products(rows: Tensor, iterations: int) -> Tensor:
    """Rotations of all pairs at a time, by matrix products: what the package runs on CUDA."""
    return contribution_along(rows, *eigh_by_products(smaller_gram(rows), iterations))


def by_jacobi(rows: Tensor, sweeps: int) -> Tensor:
    """Parallel cyclic Jacobi on the smaller Gram matrix: n/2 disjoint rotations at a time, in Brent and Luk's ordering.

    A sweep is n - 1 dependent steps; n is even.
    """
    gram = smaller_gram(rows)
    count = len(gram)
    half = count // 2
    vectors = torch.eye(count, device=gram.device)
    places = torch.arange(count, device=gram.device)
    first, second = places.chunk(2)
    order = torch.cat([first[:1], second[:1], first[1:-1], second[1:], first[-1:]])
    for _ in range(sweeps * (count - 1)):
        diagonal, between = gram.diagonal(), gram[:half, half:].diagonal()
        difference = diagonal[half:] - diagonal[:half]
        angle = 0.5 * torch.atan2(2 * between * difference.sign().add(0.5).sign(), difference.abs())
        turn = angle.cos(), angle.sin()
        gram = _rotate(_rotate(gram, *turn)[order].T, *turn)[order].T
        vectors = _rotate(vectors.T, *turn)[order].T
    return contribution_along(rows, gram.diagonal(), vectors)


def _rotate(matrix: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = matrix.chunk(2)
    cosines, sines = cosines[:, None], sines[:, None]
    return torch.cat([cosines * first - sines * second, sines * first + cosines * second])


def by_subspace(rows: Tensor, iterations: int) -> Tensor:
    """Subspace iteration for the largest 32 singular values, orthonormal by Cholesky; the rest as if it were noise.

    m equal singular values of size s leave the L1 norm of a row free to depend on the basis; its mean over all bases is
    close to the row's Euclidean norm times the square root of 2m/π, which stands for the rest.
    """
    gram = rows @ rows.T
    count = len(gram)
    start = torch.randn(count, _LARGEST, generator=torch.Generator().manual_seed(0)).to(gram.device)
    basis = _orthonormal(gram @ start)
    for _ in range(iterations):
        basis = _orthonormal(gram @ basis)
    values = ((gram @ basis) * basis).sum(dim=0).clamp(min=0)
    rest = (gram.diagonal() - (basis.square() * values).sum(dim=1)).clamp(min=0).sqrt()
    unseen = max(min(rows.shape) - _LARGEST, 0)
    return (basis * values.sqrt()).abs().sum(dim=1) + rest * math.sqrt(2 * unseen / math.pi)


def _orthonormal(columns: Tensor) -> Tensor:
    gram = columns.T @ columns
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    factor, _ = torch.linalg.cholesky_ex(gram)
    return torch.linalg.solve_triangular(factor, columns.T, upper=False).T


def by_square_root(rows: Tensor, iterations: int) -> Tensor:
    """Diagonal of (TTᵀ)^½, which is Σᵢ σᵢ u²_xi, by Newton and Schulz's coupled iteration.

    The score itself is no function of the matrix TTᵀ: where singular values are equal it depends on which basis of
    their space was taken, and a function of the matrix does not. To first order in how far the u²_xi are from their
    mean 1/N, though, Σᵢ σᵢ |u_xi| orders tokens as this does.
    """
    gram = rows @ rows.T
    identity = torch.eye(len(gram), device=gram.device)
    scale = gram.norm()
    root, inverse = gram / scale, identity
    for _ in range(iterations):
        step = 1.5 * identity - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return root.diagonal() * scale.sqrt()


WAYS = (
    Way("SVD", by_svd, recordable=False),
    Way("eigh of the Gram matrix", by_eigh, recordable=False),
    Way("the same, rows rounded to bfloat16", lambda rows: by_eigh(rows.bfloat16().float()), recordable=False),
    Way("cyclic Jacobi, 8 sweeps", lambda rows: by_jacobi(rows, 8)),
    Way("matrix products, 16 iterations", lambda rows: by_products(rows, 16)),
    Way("matrix products, 20 iterations", lambda rows: by_products(rows, 20)),
    Way("matrix products, 24 iterations", lambda rows: by_products(rows, 24)),
    Way("subspace of 32, 8 iterations", lambda rows: by_subspace(rows, 8), recordable=False),
    Way("subspace of 32, 30 iterations", lambda rows: by_subspace(rows, 30), recordable=False),
    Way("diagonal of the square root, 20 iterations", lambda rows: by_square_root(rows, 20)),
    Way("row norm (control)", row_norm),
)
