"""What the information contribution score costs, and what shortcuts lose: ``python -m flashvla_ros.bench.ics_cost``.

The score of a visual token is the L1 norm of its row in the principal basis, so it needs eigenvectors, and those are
what costs. Every way to get them is timed on the same matrices, and the tokens that it keeps are compared with those of
the singular value decomposition in float64. On the CPU durations are CPU time of the calling thread, so that what else
runs on the machine does not count; on CUDA they are those of the device.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashvla_ros.core.results import write_results
from flashvla_ros.vla.pruning.scores import information_contribution, row_norm

SIZES = ((64, 128), (144, 1024), (256, 1024), (256, 4096))
KEPT = 0.625
_TAIL = 32  # singular values that the truncated ways compute


def by_svd(rows: Tensor) -> Tensor:
    """The definition, without the right singular vectors that TokenCarve's code computes in full."""
    left, values, _ = torch.linalg.svd(rows.float(), full_matrices=False)
    return (left * values).abs().sum(dim=1)


def by_jacobi(rows: Tensor, sweeps: int = 8) -> Tensor:
    """Parallel cyclic Jacobi on the Gram matrix: N/2 disjoint rotations at a time, in Brent and Luk's ordering.

    A fixed number of sweeps makes no choice that depends on the matrix, so CUDA graphs can record it; N is even.
    """
    gram = rows.float() @ rows.float().T
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
    return (vectors * gram.diagonal().clamp(min=0).sqrt()).abs().sum(dim=1)


def _rotate(matrix: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = matrix.chunk(2)
    cosines, sines = cosines[:, None], sines[:, None]
    return torch.cat([cosines * first - sines * second, sines * first + cosines * second])


def by_subspace(rows: Tensor, iterations: int = 8) -> Tensor:
    """Subspace iteration for the largest 32 singular values, orthonormal by Cholesky; the rest as if it were noise.

    m equal singular values of size s leave the L1 norm of a row free to depend on the basis; its mean over all bases is
    close to the row's Euclidean norm times the square root of 2m/π, which stands for the rest.
    """
    gram = rows.float() @ rows.float().T
    count = len(gram)
    start = torch.randn(count, _TAIL, generator=torch.Generator().manual_seed(0)).to(gram.device)
    basis = _orthonormal(gram @ start)
    for _ in range(iterations):
        basis = _orthonormal(gram @ basis)
    values = ((gram @ basis) * basis).sum(dim=0).clamp(min=0)
    rest = (gram.diagonal() - (basis.square() * values).sum(dim=1)).clamp(min=0).sqrt()
    return (basis * values.sqrt()).abs().sum(dim=1) + rest * math.sqrt(2 * (count - _TAIL) / math.pi)


def _orthonormal(columns: Tensor) -> Tensor:
    gram = columns.T @ columns
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    factor, _ = torch.linalg.cholesky_ex(gram)
    return torch.linalg.solve_triangular(factor, columns.T, upper=False).T


WAYS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "svd": by_svd,
    "eigh of the Gram matrix": information_contribution,
    "the same, rows rounded to bfloat16": lambda rows: information_contribution(rows.bfloat16()),
    "Jacobi, 8 sweeps": by_jacobi,
    "subspace of 32, 8 iterations": by_subspace,
    "subspace of 32, 30 iterations": lambda rows: by_subspace(rows, 30),
    "row norm (control)": row_norm,
}


def matrices(count: int, size: int, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield rows [count, size] whose singular values fall off in three ways."""
    generator = torch.Generator().manual_seed(0)
    rank = min(count, size)
    left, _ = torch.linalg.qr(torch.randn(count, rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(size, rank, generator=generator))
    index = torch.arange(rank, dtype=torch.float32)
    yield "noise", torch.randn(count, size, generator=generator).to(device)
    yield "1/i", ((left / (index + 1)) @ right.T).to(device)
    yield "exponential", ((left * torch.exp(-index / 20)) @ right.T).to(device)


def overlap(one: Tensor, other: Tensor) -> float:
    """Share of the tokens kept by one score that the other keeps too."""
    k = round(KEPT * len(one))
    return len({*one.topk(k).indices.tolist()} & {*other.topk(k).indices.tolist()}) / k


def duration_ms(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of a call after one to warm up."""
    call()
    durations = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            stop.synchronize()
            durations.append(start.elapsed_time(stop))
        else:
            started_s = time.thread_time()
            call()
            durations.append(1e3 * (time.thread_time() - started_s))
    return statistics.median(durations)


def measure(device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield one row for each size and way."""
    for count, size in SIZES:
        cases = dict(matrices(count, size, device))
        truth = {name: by_svd_64(rows) for name, rows in cases.items()}
        for way, score in WAYS.items():
            few = max(2, repeats // 10) if way in ("svd", "Jacobi, 8 sweeps") else repeats
            kept = {f"overlap_{name}": overlap(truth[name], score(rows)) for name, rows in cases.items()}
            p50_ms = duration_ms(lambda score=score, rows=cases["1/i"]: score(rows), device, few)
            yield {"tokens": count, "width": size, "name": way, "p50_ms": p50_ms, **kept}


def by_svd_64(rows: Tensor) -> Tensor:
    """The definition in float64."""
    left, values, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    return (left * values).abs().sum(dim=1)


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls a cell (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU, one thread"
    print(f"{name}, torch {torch.__version__}\n")
    print("| tokens x width | way | p50 [ms] | kept as by SVD in float64: noise | 1/i |\n|---|---|---|---|---|")
    rows = []
    for row in measure(device, options.repeats):
        rows.append(row)
        overlaps = " | ".join(f"{row[f'overlap_{case}']:.3f}" for case in ("noise", "1/i"))
        print(f"| {row['tokens']} x {row['width']} | {row['name']} | {row['p50_ms']:.2f} | {overlaps} |", flush=True)
    if options.json:
        write_results(options.json, {"device": name, "torch": torch.__version__, "kept": KEPT}, rows)


if __name__ == "__main__":
    main()
