"""Nothing that is read from outside can run code: no pickle, no eval, no remote code, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flashvla_ros"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
HARMLESS = {"UnpicklingError"}  # what a safe reader raises
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}


def offences(tree: ast.AST) -> Iterator[str]:
    """What of a module could run code that it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            yield from (str(node.module) for alias in node.names if alias.name not in HARMLESS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in CALLS or keywords.get("trust_remote_code", "False") != "False":
                yield name
            if keywords.get("shell", "False") != "False" or keywords.get("allow_pickle", "False") != "False":
                yield name
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield name


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    assert list(offences(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import UnpicklingError, loads",
        "from dill import loads",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "yaml.load(text)",
    ],
)
def test_the_check_sees_it(code: str) -> None:
    assert list(offences(ast.parse(code)))
