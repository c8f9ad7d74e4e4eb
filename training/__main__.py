"""Everything behind the two checkpoints that ship, in one command: ``python -m training --out runs``.

Demonstrations, then ``plain``, trained as anybody would, then ``dropout``, which goes on from its weights with token
dropout. Whatever was stopped goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import cpuinfo
from flashvla_ros.sim.tasks import TASKS
from training.collect import Recording, collect
from training.fit import fit
from training.trainer import FitConfig

EPISODES = 120  # of each task
PLAIN = FitConfig()
DROPOUT = FitConfig(steps=2400, learning_rate=1e-3, dropout_share=0.9)
BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # instructions that make it faster than float32


def make(out: Path, *, workers: int, threads: int, compiled: bool) -> None:
    """Collect and train below `out`; what is there already is not made again."""
    torch.set_num_threads(threads)
    precision = "bfloat16" if BFLOAT16 & set(cpuinfo("flags").split()) else "float32"
    collect(out / "data", list(TASKS), EPISODES, 0, Recording(PLAIN.size.image_size), workers)
    start = None
    for name, config in (("plain", PLAIN), ("dropout", DROPOUT)):
        print(f"{name}: {config.steps} steps, {precision}, {threads} threads")
        config = dataclasses.replace(config, precision=precision, compile=compiled)
        fit(out / "data", out / name, config, init=start, resume=True)
        start = out / name


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of data, plain and dropout")
    parser.add_argument("--workers", type=int, default=2, help="processes that collect (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of training (default %(default)s)")
    parser.add_argument(
        "--no-compile", action="store_true", help="do without torch.compile, which needs a C++ compiler"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse_arguments(arguments)

    def work() -> None:
        make(options.out, workers=options.workers, threads=options.threads, compiled=not options.no_compile)

    return exit_code(work, interrupted="the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
