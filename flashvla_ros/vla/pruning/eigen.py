"""Eigenvectors of a symmetric matrix: by LAPACK on the CPU, elsewhere by a fixed number of matrix products.

``torch.linalg.eigh`` on CUDA asks the device whether it converged, so the host waits inside the step and no CUDA graph
can record it. Of the products which kernels run depends on the size of the matrix alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flashvla_ros.vla.model import says_nothing

ITERATIONS = 24  # benchmarks/ics.py: tokens of a policy need 20, noise of 256 x 4096 needs 24
_DAMPING = 0.3
_LARGEST = 2**0.25  # root of the norm of K²: K turns by at most 1, where I + K + K²/2 stretches by 12 %
_ROUNDING = 1e-12  # square of a difference of eigenvalues that float32 no longer resolves, for a trace of 1


def eigh_by_lapack(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n] and orthonormal eigenvectors [n, n], its columns, of a symmetric matrix on the CPU.

    On one thread: several gain a tenth at n = 256 where waiting threads spin, and take ten times as long where they
    sleep (OMP_WAIT_POLICY=passive), since LAPACK makes them meet thousands of times.

    Raises:
        ActionError: The matrix is not finite.
    """
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        return torch.linalg.eigh(matrix)
    except RuntimeError as error:  # where products go on, to logits that are not finite
        raise says_nothing("the visual tokens' scores are not finite") from error
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def eigh_by_products(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n] and orthonormal eigenvectors [n, n], its columns, of a positive semidefinite [n, n].

    They come in no order.

    Jacobi's rotations, of all pairs at a time. In the basis X the matrix is S = XᵀAX, and the rotation that makes it
    diagonal to first order has the antisymmetric generator K_ij = S_ij / (S_jj - S_ii). It is damped, as Levenberg and
    Marquardt damp Newton's step, by what rows i and j still have off the diagonal: as long as that is much, close pairs
    wait; as it vanishes so does the damping, and convergence is quadratic. X(I + K + K²/2) is orthonormal up to
    K⁴/4, which a Newton-Schulz step all but takes away.

    In float32 eigenvalues within 1e-6 of each other, as shares of their sum, come out with mixed eigenvectors: whoever
    scores by them gets what float32 makes of the Gram matrix, not what the singular value decomposition would give.
    The start is a fixed random basis: in the unit basis, two equal rows have equal diagonals and would never turn.
    """
    size = len(matrix)
    scale = matrix.trace().clamp(min=torch.finfo(matrix.dtype).tiny)
    matrix = matrix / scale
    basis = _start(size, matrix.device).to(matrix.dtype)
    for _ in range(ITERATIONS):
        turned = basis.T @ (matrix @ basis)
        turned = turned + turned.T  # a rounding error that is not symmetric would make K no rotation
        values = turned.diagonal()
        gaps = values - values[:, None]
        off = torch.addcmul(turned.norm(dim=1).square(), values, values, value=-1).clamp(min=0)
        damping = _DAMPING * off + _ROUNDING / 2
        generator = turned * gaps / torch.addcmul(damping + damping[:, None], gaps, gaps)
        square = generator @ generator
        # Its eigenvalues come in equal pairs, so the largest is at most the Frobenius norm over the square root of 2.
        share = square.norm().clamp(min=_LARGEST**2).rsqrt() * _LARGEST
        basis = torch.addmm(basis, basis, share * torch.addcmul(generator, 0.5 * share, square))
        basis = torch.addmm(basis, basis, basis.T @ basis, beta=1.5, alpha=-0.5)
    return scale * (basis * (matrix @ basis)).sum(dim=0), basis


@functools.cache  # without a bound: recorded graphs read it
def _start(size: int, device: torch.device) -> Tensor:
    """Return a random basis [size, size], the same everywhere, sent to the device once."""
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn).Q.to(device)
