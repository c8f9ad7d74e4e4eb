"""Random commands through the guard's rules: ``nice -n 19 python -m benchmarks.guard_fuzz``, about an hour and a half.

An oracle that shares no code with the rules holds what passes to the limits (test/guard/fuzz_guard.py). The file is
rewritten after each part, and a run that was cut short goes on behind its last one, as long as the rules are the same.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.tables import table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name, read_results, write_results
from flashvla_ros.control import limits, motion, safety
from flashvla_ros.guard import rules

_FUZZ = Path(__file__).parents[1] / "test" / "guard" / "fuzz_guard.py"
_JUDGES = (rules.__file__, limits.__file__, motion.__file__, safety.__file__, str(_FUZZ))
_PART = 100_000
_SEEDS = 1000  # from one part's first to the next part's; a part has fewer


def rules_digest() -> str:
    """Return a name for the code that judges, and for what judges it."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in _JUDGES)).hexdigest()[:16]


def run_part(number: int, commands: int) -> dict[str, Any]:
    """Send the commands of one part through the rules; returns what was seen.

    Raises:
        AssertionError: One passed that should not have; names its seed.
    """
    sys.path.append(str(_FUZZ.parent))
    from fuzz_guard import fuzz_guard

    began_s = time.monotonic()
    seen = fuzz_guard(commands, number * _SEEDS)
    return {"part": number, **seen, "seconds": time.monotonic() - began_s}


def page(results: Mapping[str, Any]) -> str:
    """Return what was seen of all parts."""
    seen: collections.Counter[str] = collections.Counter()
    for row in results["rows"]:
        seen.update(row)
    stops = [[f"`{name.removeprefix('stop ')}`", str(seen[name])] for name in sorted(seen) if name.startswith("stop ")]
    return (
        f"{seen['commands']} commands to {seen['guards']} guards: {seen['passed']} passed, {seen['refused']} did not; "
        f"none passed that is outside its limits, and there was no error.\n\n{table(['stop', 'times'], stops)}"
    )


def _finished(path: Path, digest: str) -> list[dict[str, Any]]:
    """Return the parts that a run of the same rules has left."""
    if not path.exists():
        return []
    results = read_results(path)
    return list(results["rows"]) if results["meta"].get("rules") == digest else []


def _fuzz(args: argparse.Namespace) -> None:
    digest = rules_digest()
    rows = _finished(args.json, digest)
    done = {row["part"] for row in rows}
    parts = [number for number in range(-(-args.commands // args.part)) if number not in done]
    with ProcessPoolExecutor(args.workers) as pool:
        futures = [pool.submit(run_part, number, args.part) for number in parts]
        try:
            for future in as_completed(futures):
                print(future.result(), flush=True)
                rows = sorted([*rows, future.result()], key=lambda row: row["part"])
                made = meta(processor_name(), command="guard_fuzz", rules=digest)
                write_results(args.json, made, rows)
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    """Send what is still missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", type=int, default=10_000_000, metavar="N", help="%(default)s")
    parser.add_argument("--part", type=int, default=_PART, metavar="N", help="commands between two saves (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (%(default)s)")
    results = Path(__file__).parent / "results" / "guard_fuzz.json"
    parser.add_argument("--json", type=Path, default=results, metavar="FILE", help="%(default)s")
    args = parser.parse_args()
    return exit_code(lambda: _fuzz(args))


if __name__ == "__main__":
    sys.exit(main())
