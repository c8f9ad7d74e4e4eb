"""What does the information contribution score cost? ``python -m benchmarks.ics``.

Times the score by LAPACK's or cuSOLVER's ``eigh`` of the Gram matrix, and by the matrix products that the package runs
on CUDA (:mod:`flashvla_ros.vla.pruning.eigen`; its tests hold both to the definition). Other ways were timed
and rejected: the singular value decomposition and cyclic Jacobi take two to a hundred times as long, and a subspace
iteration, the diagonal of the Gram matrix's square root and the row norm keep 71 to 97 % of the right tokens.

On the CPU durations are CPU time of the calling thread, so that what else runs on the machine does not count. On CUDA
they are those of the clock with the device synchronised at both ends, and the products replay a recorded graph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables import publish, table
from flashvla_ros.bench.command import ms
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.vla.engine.graphs import cuda_graphs
from flashvla_ros.vla.pruning.eigen import eigh_by_products
from flashvla_ros.vla.pruning.scores import contribution_along

COUNTS, WIDTHS = (64, 144, 256), (128, 384, 4096)
WAYS: Mapping[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "eigh": torch.linalg.eigh,
    "matrix products": eigh_by_products,
}


def duration_ms(name: str, rows: Tensor, limit_s: float) -> float:
    """Median time of scoring, of at least three times and as many as fit into `limit_s`, after some to warm up."""
    call: Callable[[], Any] = lambda: score(rows, WAYS[name])  # noqa: E731
    clock = time.thread_time
    call()
    if rows.device.type == "cuda":
        clock = _synchronised
        if WAYS[name] is eigh_by_products:  # eigh makes the host wait, so no graph can record it
            for _ in range(2):
                call()
            call = cuda_graphs(rows.device)(call)
    durations: list[float] = []
    begun_s = time.perf_counter()
    while len(durations) < 3 or (time.perf_counter() - begun_s < limit_s and len(durations) < 100):
        started_s = clock()
        call()
        durations.append(1e3 * (clock() - started_s))
    return statistics.median(durations)


def score(rows: Tensor, eigenvectors: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Score of each of rows [N, d] along the eigenvectors of the smaller Gram matrix."""
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return contribution_along(rows, *eigenvectors(gram))


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(counts: list[int], widths: list[int], device: torch.device, limit_s: float) -> Iterator[dict[str, Any]]:
    """Yield one row for each number of tokens and width, of rows whose singular values fall off as 1/i."""
    for count in counts:
        for width in widths:
            generator = torch.Generator().manual_seed(0)
            left, _, right = torch.linalg.svd(torch.randn(count, width, generator=generator), full_matrices=False)
            rows = ((left / torch.arange(1, len(right) + 1)) @ right).to(device)
            yield {"tokens": count, "width": width, "ms": {name: duration_ms(name, rows, limit_s) for name in WAYS}}


def page(results: Mapping[str, Any]) -> str:
    """Return a line for each size."""
    run = results["meta"]
    lines = [[f"{row['tokens']} x {row['width']}", *map(ms, row["ms"].values())] for row in results["rows"]]
    words = f"{run['device']}; torch {run['versions']['torch']}; medians."
    return f"{words}\n\n{table(['tokens x width', *(f'{name} [ms]' for name in WAYS)], lines)}"


def main() -> int:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="most for a cell's timing (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=COUNTS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="D", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    options = parser.parse_args()

    @torch.inference_mode()
    def work() -> None:
        device = torch.device(options.device)
        torch.set_num_threads(1)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor_name()}, one thread"
        rows = list(measure(options.tokens, options.widths, device, options.seconds))
        made = meta(name, command="ics")
        publish(page, made, rows, options.json)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
