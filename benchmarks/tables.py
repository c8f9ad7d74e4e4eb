"""Tables in Markdown, for the page of results, and what every benchmark does with its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashvla_ros.cli.results import write_results

Results = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, all columns but the first aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(page: Callable[[Results], str], made: Results, rows: Sequence[Results], path: Path | None) -> None:
    """Print the page of results, and write them where a path is given.

    Raises:
        FlashVLAError: The file cannot be written.
    """
    print(page({"meta": made, "rows": rows}))
    if path:
        write_results(path, made, rows)
