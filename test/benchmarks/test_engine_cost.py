"""Variants of the engine side by side: same tokens, a row each, a table that a page can take."""

from __future__ import annotations

import torch

from benchmarks import engine
from benchmarks.engine import VARIANTS, Variant
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import PruningSettings


def test_a_row_for_each_step_and_variant_and_threads_share_a_policy():
    variants = [
        Variant("eager"),
        Variant("static", channels_last=True),
        Variant("static"),
        Variant("static", threads=2),
    ]
    before = torch.get_num_threads()
    try:
        rows = list(engine.measure_all("tiny", variants, 1))
    finally:
        torch.set_num_threads(before)
    names = [one.name for one in variants]
    assert names == [
        "eager, float32",
        "static, float32, channels-last",
        "static, float32",
        "static, float32, 2 threads",
    ]
    assert [(row["name"], row["variant"]) for row in rows] == [(kind, n) for kind in engine._STEPS for n in names]
    assert all(row["speedup"] == 1.0 for row in rows[::4]) and all(row["first_s"] > 0 for row in rows)
    meta = {"model": "tiny", "device": "here", "versions": {"torch": "x"}, "rounds": 1}
    assert "| dense | static, float32, 2 threads |" in engine.page({"meta": meta, "rows": rows})


def test_memory_format_changes_no_token():
    seen = engine._observation()
    plain, last = (Variant("static", channels_last=flag).load("tiny") for flag in (False, True))
    pruning = PruningSettings(method="none")
    assert plain.infer(Request(seen, pruning)).tokens.tolist() == last.infer(Request(seen, pruning)).tokens.tolist()


def test_every_variant_is_named_once():
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
