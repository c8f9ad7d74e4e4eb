"""What the information contribution score costs, and what shortcuts lose: ``python -m benchmarks.ics``.

The score of a visual token is the L1 norm of its row in the principal basis, so it needs eigenvectors, and those are
what costs. Every way to get them is timed on the same matrices, and the tokens that it keeps are compared with those of
the singular value decomposition in float64. On the CPU durations are CPU time of the calling thread, so that what else
runs on the machine does not count. On CUDA they are those of the clock with the device synchronised at both ends, and a
way that can be recorded as a CUDA graph is timed as one.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ics_ways import WAYS, Way, by_svd_64
from benchmarks.token_samples import sampled_tokens
from flashvla_ros.bench import device as machine
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.processor import processor_name
from flashvla_ros.cli.results import write_results
from flashvla_ros.vla.engine.graphs import CudaGraphs

COUNTS, WIDTHS = (64, 144, 256), (128, 384, 4096)
KEPT = (0.625, 0.5, 0.25)
_HEAD = (
    "| tokens x width | way | p50 [ms] | policy: 62.5 % | 50 % | 25 % | worst drawn: 62.5 % | 50 % | 25 % |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Rows [N, d] and the scores [N] that the definition gives them."""

    name: str
    rows: Tensor
    truth: Tensor

    @classmethod
    def of(cls, name: str, rows: Tensor, device: torch.device) -> Case:
        """Score by the definition on the host, once."""
        return cls(name, rows.to(device), by_svd_64(rows))


def drawn(count: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """Yield rows [count, width] whose singular values fall off in three ways."""
    generator = torch.Generator().manual_seed(0)
    rank = min(count, width)
    left, _ = torch.linalg.qr(torch.randn(count, rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(width, rank, generator=generator))
    index = torch.arange(rank, dtype=torch.float32)
    yield "noise", torch.randn(count, width, generator=generator)
    yield "1/i", (left / (index + 1)) @ right.T
    yield "exponential", (left * torch.exp(-index / 20)) @ right.T


def overlaps(one: Tensor, other: Tensor) -> list[float]:
    """Share of the tokens kept by one score that the other keeps too, for each share of :data:`KEPT`."""
    found = []
    for ratio in KEPT:
        k = round(ratio * len(one))
        found.append(len({*one.topk(k).indices.tolist()} & {*other.topk(k).indices.tolist()}) / k)
    return found


def duration_ms(score: Callable[[Tensor], Tensor], rows: Tensor, way: Way, limit_s: float) -> float:
    """Median time of a call, of at least three and as many as fit into `limit_s`, after one to warm up."""
    call: Callable[[], Any] = lambda: score(rows)  # noqa: E731
    call()
    if rows.device.type == "cuda" and way.recordable:
        call = CudaGraphs(rows.device).record(call)
    durations: list[float] = []
    begun_s = time.perf_counter()
    while len(durations) < 3 or (time.perf_counter() - begun_s < limit_s and len(durations) < 100):
        if rows.device.type == "cuda":
            torch.cuda.synchronize()
            started_s = time.perf_counter()
            call()
            torch.cuda.synchronize()
            durations.append(1e3 * (time.perf_counter() - started_s))
        else:
            started_s = time.thread_time()
            call()
            durations.append(1e3 * (time.thread_time() - started_s))
    return statistics.median(durations)


def measure(sizes: list[tuple[int, int]], device: torch.device, limit_s: float) -> Iterator[dict[str, Any]]:
    """Yield one row for each size and way; a size for which the policy has tokens is judged by them too."""
    known = sampled_tokens()
    for count, width in dict.fromkeys([*sizes, *(tuple(rows.shape) for rows in known)]):
        cases = [Case.of(name, rows, device) for name, rows in drawn(count, width)]
        real = [Case.of("policy", rows, device) for rows in known if rows.shape == (count, width)]
        for way in WAYS:
            kept = {one.name: overlaps(one.truth, way.score(one.rows).cpu()) for one in cases}
            found = [overlaps(one.truth, way.score(one.rows).cpu()) for one in real]
            timed = real[0] if real else cases[1]
            yield {
                "tokens": count,
                "width": width,
                "name": way.name,
                "recordable": way.recordable,
                "p50_ms": duration_ms(way.score, timed.rows, way, limit_s),
                "overlap": kept,
                "overlap_policy": [statistics.fmean(column) for column in zip(*found, strict=True)],
                "overlap_policy_least": [min(column) for column in zip(*found, strict=True)],
                "policy_frames": len(real),
            }


def line(row: dict[str, Any]) -> str:
    """One row as Markdown."""
    worst = [f"{min(column):.3f}" for column in zip(*row["overlap"].values(), strict=True)]
    policy = [f"{value:.3f}" for value in row["overlap_policy"]] or ["–"] * len(KEPT)
    cells = [f"{row['tokens']} x {row['width']}", row["name"], f"{row['p50_ms']:.2f}", *policy, *worst]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="most for a cell's timing (default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=COUNTS, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, metavar="D", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here as well")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor_name()}, one thread"
    print(f"{name}, torch {torch.__version__}\n\n{_HEAD}")
    sizes = [(count, width) for count in options.tokens for width in options.widths]

    def work() -> None:
        rows = []
        with torch.inference_mode():
            for row in measure(sizes, device, options.seconds):
                rows.append(row)
                print(line(row), flush=True)
        if options.json:
            meta = {"command": "ics_cost", "device": name, "versions": machine.versions(), "kept": KEPT}
            write_results(options.json, meta, rows)

    return exit_code(work)


if __name__ == "__main__":
    raise SystemExit(main())
