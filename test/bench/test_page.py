"""Tables, picture, aims and the page that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashvla_ros.bench import aims, tables
from flashvla_ros.bench import page as page_module
from flashvla_ros.bench.configurations import DENSE, draft_name, paper_name
from flashvla_ros.core.errors import FlashVLAError

ROOT = Path(__file__).parents[2]


def test_page_is_filled_from_the_results_it_names(results, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(results))
    page = "before\n<!-- results r.json -->\nold\n<!-- end -->\nafter\n"
    new = page_module.filled(page, tmp_path)
    assert "old" not in new and tables.markdown(results) in new
    assert new.startswith("before\n") and new.endswith("\nafter\n")
    assert page_module.filled(new, tmp_path) == new
    with pytest.raises(FlashVLAError, match="names no results"):
        page_module.filled("nothing", tmp_path)


@pytest.mark.parametrize("name", ["speed.md", "engine.md"])
def test_every_table_of_a_page_comes_from_its_results(name):
    page = ROOT / "docs" / name
    text = page.read_text(encoding="utf-8")
    assert page_module.filled(text, page.parent) == text


def test_aims_say_what_was_missed_and_by_how_much():
    def row(**values):
        return {"speedup": 2.0, "p50_ms": 50.0, "over_least": 1.5, **values}

    paper = paper_name(256)
    rows = {
        DENSE: row(),
        draft_name(DENSE, 1): row(p50_ms=20.0),
        paper: row(stages={"scoring": {"p50_ms": 0.3}}),
        f"guarded gate, {paper}": row(speedup=9.0),
    }
    faster, near, scoring, draft, mix = aims.verdicts(rows)
    assert faster[2:] == ("2.00", "missed by 50%") and near[2:] == ("1.50", "missed by 20%")
    assert scoring[3] == draft[3] == mix[3] == "met"
    assert {line[3] for line in aims.verdicts({})} == {"not measured"}
    meta = {"model": "7b", "dtype": "bfloat16", "versions": {"cuda": "13.0"}}
    assert aims.apply_to(meta) and not aims.apply_to(meta | {"versions": {}})
