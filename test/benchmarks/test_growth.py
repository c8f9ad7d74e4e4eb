"""How the cost grows: sizes that can be asked for, and a row for each."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from benchmarks import growth


def test_each_size_gives_a_row_for_each_way_to_run_it(tmp_path):
    args = argparse.Namespace(
        size="tiny", device="cpu", rounds=1, seconds=60.0, threads=1, tokens=[16, 25], cameras=[1, 2], actions=[4, 5]
    )
    results = growth.measure_growth(args)
    rows = results["rows"]
    names = (growth.PLAIN, growth.DENSE, growth.PRUNED)
    expected = [(16, 1, 4), (25, 1, 4), (16, 2, 4), (16, 1, 5)]
    found = [(row["tokens"], row["cameras"], row["actions"], row["name"]) for row in rows]
    assert found == [(*point, name) for point in expected for name in names]
    assert [row["visual_tokens"] for row in rows[::3]] == [16, 25, 32, 16]
    growth.draw(results, tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    json.dumps(results)


def test_each_line_passes_through_the_middle_once():
    found = growth.points([64, 256, 1024], [1, 2], [7, 32])
    assert found == [(64, 1, 7), (256, 1, 7), (1024, 1, 7), (256, 2, 7), (256, 1, 32)]


def test_cameras_see_different_frames():
    one, two = growth._observations(1)[0], growth._observations(2)[0]
    first, second = two.images.values()
    assert (next(iter(one.images.values())) == first).all() and (first != second).any()


def test_tokens_that_make_no_square_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["growth", "--size", "tiny", "--tokens", "65"])
    assert growth.main() == 2
    assert capsys.readouterr().err == (
        "65 visual tokens are no square of patches: give squares such as 64, 256, 484, 1024\n"
    )
