"""Tables, picture, and the page that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import page as page_module
from flashvla_ros.bench import tables
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
