"""``flashvla-ros bench``: what a step costs, against the plain model and other pruners, timed in turn in one run."""

from __future__ import annotations

import argparse
from pathlib import Path

from flashvla_ros.bench import show
from flashvla_ros.bench.trace import DEFAULT_TRACE
from flashvla_ros.cli.results import read_results, write_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``bench``."""
    parser.add_argument(
        "--model", default="demo", help="demo, random weights of size tiny, mid or 7b, or a folder (%(default)s)"
    )
    parser.add_argument("--rounds", type=_positive, default=10, metavar="N", help="timed rounds (%(default)s)")
    parser.add_argument("--seconds", type=_positive, default=0, metavar="S", help="begin no round after this time")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="configurations such as 'ics*'")
    parser.add_argument("--trace", type=Path, default=DEFAULT_TRACE, metavar="FILE", help="decisions to mix by (CSV)")
    parser.add_argument("--device", default="auto", help="torch device (%(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--attention", default="auto", help="auto, flash_attention_2, sdpa or eager")
    parser.add_argument("--engine", default="auto", help="auto, eager, static or compiled")
    parser.add_argument("--threads", type=_positive, default=0, metavar="N", help="CPU threads (torch's default)")
    parser.add_argument("--note", default="", metavar="TEXT", help="about this machine, for the page of results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them")
    parser.add_argument("--markdown", action="store_true", help="print tables for a page")
    parser.add_argument("--read", type=Path, metavar="FILE", help="measure nothing: take the results of an earlier run")


def run(args: argparse.Namespace) -> int:
    """Measure or read, print a table, write what was asked for."""
    if args.plot is not None:
        import matplotlib  # noqa: F401  # now: it may be missing, and minutes of measuring be lost
    if args.read is not None:
        results = read_results(args.read)
    else:
        from flashvla_ros.bench.run import measure_all

        results = measure_all(args)

    print(show.markdown(results) if args.markdown else show.text(results))
    if args.json is not None:
        write_results(args.json, results["meta"], results["rows"])
    if args.plot is not None:
        show.draw(results, args.plot)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)
