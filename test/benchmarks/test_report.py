"""The page of results: what the command writes from the files that stand beside it, no figure typed."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks import report
from flashvla_ros.core.errors import FlashVLAError
from flashvla_ros.core.files import read_json
from flashvla_ros.core.paths import share_path
from flashvla_ros.core.settings import Settings
from flashvla_ros.evaluation import markdown

RESULTS = report.FOLDER / "results"


def test_the_page_equals_what_the_command_makes():
    page = (report.FOLDER / "RESULTS.md").read_text(encoding="utf-8")
    assert page == report.compose(RESULTS), "run python -m benchmarks.report"
    assert all(f"`{file.name}`" in page for file in RESULTS.glob("*.json"))


def test_a_file_of_no_section_and_an_empty_folder_are_refused(tmp_path: Path):
    with pytest.raises(FlashVLAError, match="holds no results"):
        report.compose(tmp_path)
    (tmp_path / "speeed-mid.json").write_text((RESULTS / "main-demo.json").read_text())
    with pytest.raises(FlashVLAError, match=r"speeed-mid\.json belongs to no section"):
        report.compose(tmp_path)


def test_evaluations_stand_in_their_sections_with_what_they_are_compared_with(tmp_path: Path):
    content = json.loads((RESULTS / "main-demo.json").read_text())
    (tmp_path / "main-demo.json").write_text(json.dumps(content))
    pruners = [
        row | {"mode": mode} for row in content["rows"] if row["mode"] == "prune" for mode in ("prune", "random")
    ]
    (tmp_path / "pruners-demo.json").write_text(json.dumps(content | {"rows": pruners}))
    page = report.compose(tmp_path)
    heads = [line for line in page.splitlines() if line.startswith("## ")]
    assert heads == ["## Success and cost", "## Pruning methods side by side"]
    assert re.search(r"- `guarded`: .* fewer visual-token FLOPs, .* below dense \(p = ", page)
    assert "| `prune` | 0 / 0, p = 1 |  |" in page


def test_a_file_is_shown_in_its_section_with_the_picture_beside_it(tmp_path: Path):
    content = {"meta": {"device": "here", "versions": {"torch": "x"}}, "rows": []}
    (tmp_path / "ics-here.json").write_text(json.dumps(content))
    (tmp_path / "ics-here.png").write_bytes(b"")
    page = report.compose(tmp_path)
    assert "### `ics-here.json`\n\nhere; torch x" in page
    assert f"({tmp_path.name}/ics-here.png)" in page


def test_episodes_that_are_pruned_are_not_called_dense():
    _, text, _ = report.SECTIONS["score"]
    assert text.startswith(f"Episodes without a gate, {100 * Settings().pruning.keep_ratio:g} % of the tokens")
    assert "dense" not in text.lower()


def test_every_command_of_the_readme_exists_and_every_benchmark_stands_there():
    readme = (report.FOLDER / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"python -m benchmarks\.(\w+)", readme))
    folders = {path.parent.name for path in report.FOLDER.glob("*/__main__.py")}
    modules = [f"benchmarks.{name}.__main__" if name in folders else f"benchmarks.{name}" for name in named]
    assert all(callable(importlib.import_module(module).main) for module in modules)
    parts = {"abuser", "digest", "evaluations", "own_node", "promises", "publishing", "speed", "steady", "tables"}
    parts |= {"usage"}
    assert named == {path.stem for path in report.FOLDER.glob("*.py")} - parts | folders
    assert {path.name for path in RESULTS.glob("*.json")} <= set(re.findall(r"[\w-]+\.json", readme))


def test_the_commands_of_the_readme_are_those_that_made_the_files():
    lines = (report.FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    told = {name: line for line in lines for name in re.findall(r"`([\w-]+\.json)`", line)}
    made = {file.name: json.loads(file.read_text())["meta"] for file in RESULTS.glob("*.json")}
    for name in [name for name, meta in made.items() if "rounds" in meta]:
        rounds = re.findall(r"--rounds (\d+)", told[name].partition(f"`{name}`")[0])
        assert rounds[-1] == str(made[name]["rounds"]), name
    for name in ("abuse.json", "abuse-floods.json"):
        assert f"--minutes {made[name]['minutes']:g} --seed {made[name]['seed']} " in told[name]
        assert ("`nice " in told[name]) == (made[name]["nice"] > 0)


@pytest.mark.parametrize(
    "folder",
    sorted(file.parent for file in share_path("models").glob("*/evaluation.json")),
    ids=lambda folder: folder.name,
)
def test_a_card_has_the_tables_and_the_size_of_its_checkpoint(folder: Path) -> None:
    card, evaluation = (folder / "README.md").read_text(encoding="utf-8"), read_json(folder / "evaluation.json")
    parameters = 0
    for weights in folder.glob("*.safetensors"):
        with safe_open(weights, "numpy") as tensors:
            parameters += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    assert f"| parameters | {parameters:,} |" in card
    if len(evaluation["meta"]["commands"]) == 1:  # of several, nothing says which rows were one table
        for _, rows in markdown.tables(evaluation["rows"]):
            assert markdown.success_table(rows) in card
            assert markdown.cost_table(rows) in card
