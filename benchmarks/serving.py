"""One model for many robots, or one each? ``python -m benchmarks.serving``.

Robots ask as fast as they are answered, over openpi's protocol, without a gate. `one model` is one ``serve`` process,
`a model each` one such process for each robot, `Ray Serve` the same application in two replicas. The robots themselves
are coroutines of this process, which shares the cores with what it measures. Then what a batch would bring: towers and
decoder on several observations at once, against one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from benchmarks.tables import publish, table
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.core.settings import Settings
from flashvla_ros.remote import wire

ROBOTS = (1, 4, 16)
BATCHES = (1, 2, 4, 8, 16)
_START_S = 300.0
_QUESTION = {"observation/image": np.zeros((224, 224, 3), np.uint8), "prompt": "open the drawer"}


def main(arguments: list[str] | None = None) -> int:
    """Print a table for each number of robots and kind of server."""
    args = _parser().parse_args(arguments)
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.cores]))
    rows = []
    kinds: dict[str, Callable[[int], contextlib.AbstractContextManager[list[str]]]]
    kinds = {"one model": _one, "a model each": _each, "Ray Serve": _ray}
    for name, serving in kinds.items():
        for robots in args.robots if name in args.kinds else ():
            with serving(robots) as addresses:
                rows.append({"kind": name, "robots": robots, **_measure(addresses, robots, args.seconds)})
                print(rows[-1], flush=True)
    made = meta(
        processor_name(),
        command="serving",
        seconds=args.seconds,
        cores=args.cores,
        load=os.getloadavg()[0],
        autogroup=_autogroup(),
        batches=_batches(args.rounds),
    )
    publish(page, made, rows, args.json)
    return 0


def page(results: Mapping[str, Any]) -> str:
    """Return the machine, throughput and latency of each kind of server, and what a batch brings."""
    run = results["meta"]
    lines = [
        [
            row["kind"],
            str(row["robots"]),
            f"{row['answers_hz']:.1f}",
            f"{row['p50_ms']:.0f}",
            f"{row['p99_ms']:.0f}",
            f"{row['slowest_share']:.2f}",
        ]
        for row in results["rows"]
    ]
    words = (
        f"{run['device']}, cores: {run['cores']}, load {run['load']:.1f}, scheduling group {run['autogroup']}; "
        f"{run['seconds']:g} s each. *Least share* is the answers of the robot that got fewest, in its fair share."
    )
    batches = [[str(row["size"]), f"{row['one_ms']:.1f}", f"{row['batch_ms']:.1f}"] for row in run["batches"]]
    return "\n\n".join(
        [
            words,
            table(["server", "robots", "answers a second", "p50 ms", "p99 ms", "least share"], lines),
            "Towers and decoder once over a batch of the demo policy's observations, for each observation:",
            table(["batch", "one after the other ms", "batched ms"], batches),
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serving", description=__doc__.splitlines()[0])
    parser.add_argument("--robots", type=int, nargs="+", default=list(ROBOTS), metavar="N")
    parser.add_argument("--kinds", nargs="+", default=["one model", "a model each", "Ray Serve"], metavar="KIND")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row (%(default)g)")
    parser.add_argument("--cores", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="of each batch (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return parser


@contextlib.contextmanager
def _one(_robots: int, arguments: tuple[str, ...] = ()) -> Iterator[list[str]]:
    command = [sys.executable, "-m", "flashvla_ros", "serve", "--port", "0", "--rate", "10000", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
        try:
            yield [_address(server)]
        finally:
            server.terminate()


@contextlib.contextmanager
def _each(robots: int) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_one(1))[0] for _ in range(robots)]


@contextlib.contextmanager
def _ray(_robots: int) -> Iterator[list[str]]:
    with _one(1, ("--replicas", "2", "--port", "8765")) as addresses:
        yield addresses


def _address(server: subprocess.Popen[str]) -> str:
    said = []
    for line in server.stderr or ():
        said.append(line)
        if found := re.search(r"wss?://\S+", line):
            return found[0]
    raise SystemExit(f"the server did not start: {''.join(said)}")


def _measure(addresses: list[str], robots: int, seconds: float) -> dict[str, float]:
    """Ask for a while after a warm-up; every latency is that of one robot's question."""

    async def ask(number: int, ready: asyncio.Barrier) -> list[float]:
        question, latencies = wire.pack(_QUESTION), []
        address = addresses[number % len(addresses)]
        async with connect(address, compression=None, max_size=None, open_timeout=_START_S, ping_timeout=None) as link:
            await link.recv()
            for _ in range(3):
                await link.send(question)
                await link.recv()
            await ready.wait()
            end_s = time.monotonic() + seconds
            while (started_s := time.monotonic()) < end_s:
                await link.send(question)
                await link.recv()
                latencies.append(time.monotonic() - started_s)
        return latencies

    async def ask_all() -> list[list[float]]:
        ready = asyncio.Barrier(robots)
        return await asyncio.gather(*(ask(number, ready) for number in range(robots)))

    answered = asyncio.run(ask_all())
    latencies_s = np.concatenate(answered)
    return {
        "answers_hz": len(latencies_s) / seconds,
        "slowest_share": min(map(len, answered)) * robots / len(latencies_s),
        **{f"p{percent}_ms": 1e3 * float(np.percentile(latencies_s, percent)) for percent in (50, 95, 99)},
    }


def _batches(rounds: int) -> list[dict[str, float]]:
    """Milliseconds for each observation, alone and in a batch, by turns."""
    import torch

    from flashvla_ros.vla.arch.table import load

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = load(Settings().with_values({"model.engine": "eager"}).model).model
    towers = model.config.towers
    images = torch.randn(max(BATCHES), 3 * len(towers), towers[0].image_size, towers[0].image_size)
    ids = torch.full((max(BATCHES), 24), 5)

    @torch.inference_mode()
    def run(size: int) -> None:
        hidden = model.embed(model.visual_tokens(images[:size]), ids[:size])
        rotary = model.rotary(hidden, torch.arange(hidden.shape[1])[None])
        model.logits(model.run_layers(hidden, range(len(model.layers)), rotary)[:, -1:])

    def timed(function: Callable[[], object]) -> float:
        started_s = time.perf_counter()
        function()
        return time.perf_counter() - started_s

    rows = []
    for size in BATCHES:
        run(size)
        pairs = [(timed(lambda: [run(1) for _ in range(size)]), timed(lambda: run(size))) for _ in range(rounds)]  # noqa: B023
        one_s, batch_s = np.median(pairs, axis=0) / size
        rows.append({"size": size, "one_ms": 1e3 * one_s, "batch_ms": 1e3 * batch_s})
    return rows


def _autogroup() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/self/autogroup").read_text().split(maxsplit=1)[1].strip()
    return "unknown"


if __name__ == "__main__":
    sys.exit(main())
