"""Draw mutants that mutmut has made, as many from each room: ``mutation_sample.py COUNT SEED`` where mutmut ran.

Prints their names. Those that change nothing but the text of an error are left out, and counted on standard error:
tests match the words that a user needs, not all of them.
"""

from __future__ import annotations

import ast
import json
import random
import sys
from collections import Counter, defaultdict
from pathlib import Path

MARK = "__mutmut_"


class _Wordless(ast.NodeTransformer):
    """Takes the text out of every ``raise``."""

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                part.value = ""
        return node


def wordless(function: ast.AST) -> str:
    """Return a function's code without its name and without the text of its errors."""
    [copy] = ast.parse(ast.unparse(function)).body
    if isinstance(copy, ast.FunctionDef):
        copy.name, copy.decorator_list = "f", []
    return ast.unparse(_Wordless().visit(copy))


def rooms_of(folder: Path) -> tuple[dict[str, list[str]], Counter[str]]:
    """Return the mutants of each room of the package, and how many were left out."""
    rooms: dict[str, list[str]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for meta in sorted(folder.rglob("*.meta")):
        names = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        tree = ast.parse(meta.with_suffix("").read_text(encoding="utf-8"))
        code = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        for name in names:
            last = name.rpartition(".")[2]
            original = code[f"{last.partition(MARK)[0]}{MARK}orig"]
            room = name.split(".")[1]
            if wordless(code[last]) == wordless(original):
                left_out[room] += 1
            else:
                rooms[room].append(name)
    return rooms, left_out


def main(count: int, seed: int) -> None:
    """Print the names of the sample."""
    rooms, left_out = rooms_of(Path("mutants") / "flashvla_ros")
    generator = random.Random(seed)  # noqa: S311 - it draws a sample
    for room, names in sorted(rooms.items()):
        chosen = generator.sample(names, min(len(names), -(-count // len(rooms))))
        print(f"{room}: {len(chosen)} of {len(names)}, without {left_out[room]} of words alone", file=sys.stderr)
        print("\n".join(sorted(chosen)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
