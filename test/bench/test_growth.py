"""How the cost grows: sizes that can be asked for, and a row for each."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from flashvla_ros.bench import growth


def test_each_size_gives_a_row_for_each_way_to_run_it(tmp_path):
    args = argparse.Namespace(size="tiny", rounds=1, threads=1, tokens=[16, 25], actions=[4])
    results = growth.measure_growth(args)
    sizes = [(row["visual_tokens"], row["action_size"], row["name"]) for row in results["rows"]]
    names = (growth.PLAIN, growth.DENSE, growth.PRUNED)
    assert sizes == [(tokens, 4, name) for tokens in (16, 25) for name in names]
    results["rows"] += [row | {"visual_tokens": 256} for row in results["rows"][:3]]
    growth.draw(results, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(results)


def test_tokens_that_make_no_square_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["growth", "--size", "tiny", "--tokens", "65"])
    assert growth.main() == 2
    assert capsys.readouterr().err == (
        "65 visual tokens are no square of patches: give squares such as 64, 256, 484, 1024\n"
    )
