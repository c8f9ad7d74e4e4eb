"""Rows of the table, and the page that is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvla_ros import __main__ as cli
from flashvla_ros.evaluation import markdown
from flashvla_ros.evaluation.jobs import Record
from flashvla_ros.evaluation.summary import ALL, Cell, table_rows

SEEDS = range(10, 14)
FIXED = {
    "mode",
    "task",
    "episodes",
    "successes",
    "reuse_rate",
    "visual_flops_ratio",
    "latency_p50_ms",
    "latency_p95_ms",
}


def record(*, success: bool, reaction: int | None = None, fresh: int = 6, reused: int = 4) -> Record:
    change = None if reaction is None else 5
    ticks = (300,) * fresh, (100,) * reused
    return Record(success, 10, reused, 0, 0.5, {"reuse": reused}, change, reaction, 0.5 * fresh, 0.75 * fresh, *ticks)


def cell(mode: str, task: str, successes: str, reactions: tuple = (None,) * 4, perturbation: str = "none") -> Cell:
    records = [record(success=mark == "+", reaction=late) for mark, late in zip(successes, reactions, strict=True)]
    return Cell(mode, task, perturbation, SEEDS, records)


def rows_by_name(cells: list[Cell]) -> dict[tuple[str, str], dict]:
    return {(row["mode"], row["task"]): row for row in table_rows(cells)}


def test_a_row_counts_what_its_episodes_say() -> None:
    rows = rows_by_name([cell("dense", "a", "+-++"), cell("dense", "b", "++++")])
    row = rows["dense", "a"]
    assert row.keys() >= FIXED
    assert (row["episodes"], row["successes"], row["failed_seeds"]) == (4, 3, [11])
    assert row["reuse_rate"] == pytest.approx(0.4)
    assert row["visual_flops_ratio"] == pytest.approx(0.5 * 0.6)  # a reused step costs nothing
    assert row["flops_ratio"] == pytest.approx(0.75 * 0.6)
    assert (row["latency_p50_ms"], row["inference_p50_ms"]) == (3.0, 3.0)
    assert row["latency_mean_ms"] == pytest.approx(2.2)
    assert (rows["dense", ALL]["episodes"], rows["dense", ALL]["successes"]) == (8, 7)
    assert "reaction_steps_max" not in row


def test_modes_are_paired_with_dense_by_seed_over_all_tasks() -> None:
    cells = [cell("dense", "a", "++++"), cell("dense", "b", "++-+")]
    rows = rows_by_name([*cells, cell("prune", "a", "----"), cell("prune", "b", "-+++")])
    row = rows["prune", ALL]
    assert (row["lost"], row["won"]) == (5, 1)
    assert row["mcnemar_p"] == pytest.approx(0.21875)
    assert "mcnemar_p" not in rows["dense", ALL]


def test_reaction_is_the_worst_and_the_mean_of_the_episodes_that_changed() -> None:
    rows = rows_by_name([cell("paper", "a", "++++", (0, 2, None, 1), "object_jump")])
    row = rows["paper", "a"]
    assert (row["changes"], row["reaction_steps_max"], row["reactions_late"]) == (3, 2, 2)
    assert row["reaction_steps_mean"] == 1.0
    assert row["late_seeds"] == [11, 13]


def results(modes: dict[str, str], perturbation: str = "none") -> dict:
    reactions = (0,) * 4 if perturbation != "none" else (None,) * 4
    cells = [cell(mode, "drawer-open", marks, reactions, perturbation) for mode, marks in modes.items()]
    checkpoint = {"name": "demo", "sha256": "0" * 64, "visual_tokens": 64}
    meta = {"checkpoint": checkpoint, "command": "flashvla-ros eval …", "free_running": False, "seeds": [10, 13]}
    return {"meta": meta | {"device": "a machine", "versions": {"flashvla_ros": "0"}}, "rows": table_rows(cells)}


def test_one_page_is_made_of_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {
        "first.json": results({"dense": "++++", "guarded": "+++-"}),
        "second.json": results({"guarded": "++++"}, "object_jump"),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    page, picture = tmp_path / "docs" / "results.md", tmp_path / "docs" / "images" / "results.png"
    command = ["eval", "--report", *(str(tmp_path / name) for name in files)]
    assert cli.main([*command, "--markdown", str(page), "--plot", str(picture)]) == 0
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Evaluation of `demo`",
        "# Evaluation of `demo`",
        "## object_jump",
    ]
    assert "| `guarded` | 3/4 |" in text
    assert "0 of 4" in text
    assert picture.stat().st_size > 5000
    assert cli.main(command) == 0
    assert capsys.readouterr().out == text
    part = {"meta": {"checkpoint": {"name": "demo"}}, "rows": [{"visual_flops_ratio": 1.0}]}
    for content in ({}, [], part):
        (tmp_path / "first.json").write_text(json.dumps(content))
        assert cli.main(command) == 2
        assert "is no result of flashvla-ros eval" in capsys.readouterr().err


def test_table_leaves_out_what_a_task_cannot_have() -> None:
    rows = table_rows([cell("dense", "a", "++++"), cell("dense", "b", "++++")]) + table_rows(
        [cell("prune", "a", "++++")]
    )
    lines = markdown.success_table(rows).splitlines()
    assert lines[0].startswith("| mode | a | b | all tasks |")
    assert lines[3].startswith("| `prune` | 4/4 |  | 4/4")


def test_a_small_p_is_not_nought() -> None:
    cells = [cell(mode, task, mark * 4) for task in "abcdefgh" for mode, mark in (("dense", "+"), ("prune", "-"))]
    assert rows_by_name(cells)["prune", ALL]["mcnemar_p"] == pytest.approx(2 * 0.5**32)


def test_each_of_several_suites_has_its_total_and_its_table() -> None:
    official, permuted = "libero_object", "libero_object_permuted"
    marks = {("dense", official): "++++", ("dense", permuted): "+++-"}
    marks |= {("prune", official): "+++-", ("prune", permuted): "+---"}
    cells = [cell(mode, f"{suite}/{number}", text) for (mode, suite), text in marks.items() for number in range(2)]
    rows = table_rows(cells)
    total = {(row["mode"], row["task"]): row for row in rows if "seed" not in row}
    assert list(total) == [(mode, name) for mode in ("dense", "prune") for name in (official, permuted, ALL)]
    assert [total["prune", name]["lost"] for name in (official, permuted, ALL)] == [2, 4, 6]
    tables = dict(markdown.tables(rows))
    assert list(tables) == [official, permuted]
    assert "| `prune` | 1/4 | 1/4 | 2/8 (" in markdown.success_table(tables[permuted])
    alone = [row for row in rows if row["task"].startswith(f"{official}/")]
    assert [name for name, _ in markdown.tables(alone)] == [""]
    changed = table_rows([cell("dense", f"{suite}/0", "++++", (0,) * 4, "latency") for suite in (official, permuted)])
    assert list(dict(markdown.tables(changed))) == [f"{official} latency", f"{permuted} latency"]
