"""Does every hazard's test pass every time? ``python -m benchmarks.hazards --json F.json``, about an hour.

The tests are those of the table of hazards in docs/guard.md. Each holds the reaction to its bound by itself; here they
run again and again, and a failure is counted, not explained. ``guard_trials`` measures how late stops are.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.tables import publish, table
from flashvla_ros.cli.exits import exit_code
from flashvla_ros.cli.results import meta, processor_name
from flashvla_ros.core.errors import FlashVLAError

ROOT = Path(__file__).parents[1]
_SAFETY_CASE = ROOT / "docs" / "guard.md"


def find_tests(words: str) -> list[str]:
    """Return the tests of the table of hazards, as ``room/test_file.py::test``, in the order in which they stand there.

    Some follow on others of their file.
    """
    found = set(re.findall(r"\| `(\w+/test_\w+\.py)::(test_\w+)` \|$", words, re.MULTILINE))
    sources = {file: (ROOT / "test" / file).read_text(encoding="utf-8") for file, _ in found}
    return ["::".join(test) for test in sorted(found, key=lambda test: (test[0], sources[test[0]].find(f"{test[1]}(")))]


def run_once(tests: list[str]) -> dict[str, bool]:
    """Run tests once, in one process; a test of several cases passes where all do.

    Raises:
        FlashVLAError: pytest ran none of them, or not all.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.xml"
        words = [sys.executable, "-m", "pytest", "-q", f"--junitxml={file}", *(f"test/{test}" for test in tests)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
        cases = list(ElementTree.parse(file).iter("testcase")) if file.exists() else []  # noqa: S314  # pytest's own
    passed: dict[str, bool] = {}
    for case in cases:
        place = case.attrib["classname"].removeprefix("test.").replace(".", "/")
        test = f"{place}.py::{case.attrib['name'].partition('[')[0]}"
        passed[test] = passed.get(test, True) and not list(case)
    if passed.keys() != set(tests):
        raise FlashVLAError(f"pytest did not run {sorted(passed.keys() ^ set(tests))}: {done.stdout[-1000:]}")
    return passed


def page(results: Mapping[str, Any]) -> str:
    """Return how often each test ran and passed."""
    lines = [[f"`{row['test']}`", str(row["trials"]), str(row["passed"])] for row in results["rows"]]
    run = results["meta"]
    return f"{run['device']}, load {run['load']:.1f}.\n\n{table(['test', 'trials', 'passed'], lines)}"


def _run(args: argparse.Namespace) -> None:
    tests = find_tests(_SAFETY_CASE.read_text(encoding="utf-8"))
    passed: collections.Counter[str] = collections.Counter()
    for trial in range(args.trials):
        passed += collections.Counter({test: int(ok) for test, ok in run_once(tests).items()})
        rows = [{"test": test, "trials": trial + 1, "passed": passed[test]} for test in tests]
        publish(page, meta(processor_name(), command="hazards", load=os.getloadavg()[0]), rows, args.json)


def main() -> int:
    """Print a table, rewritten after each round."""
    parser = argparse.ArgumentParser(prog="hazards", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10, metavar="N", help="of each test (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    return exit_code(lambda: _run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
