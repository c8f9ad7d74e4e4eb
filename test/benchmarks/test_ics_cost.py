"""The two ways to score tokens: the same scores, a row for each size, a line of the table for each row."""

from __future__ import annotations

import torch

from benchmarks import ics
from flashvla_ros.vla.pruning.scores import information_contribution


def test_both_ways_give_the_score_of_the_package():
    rows = torch.randn(24, 40, generator=torch.Generator().manual_seed(0)).double()  # as the package scores them
    expected = information_contribution(rows)
    for name, eigenvectors in ics.WAYS.items():
        torch.testing.assert_close(ics.score(rows, eigenvectors), expected, rtol=1e-3, atol=0, msg=name)


def test_each_size_is_timed_in_both_ways():
    with torch.inference_mode():
        rows = list(ics.measure([16], [8, 32], torch.device("cpu"), 0.0))
    assert [(row["tokens"], row["width"]) for row in rows] == [(16, 8), (16, 32)]
    assert all(min(row["ms"].values()) > 0.0 for row in rows)
    page = ics.page({"meta": {"device": "here", "versions": {"torch": "x"}}, "rows": rows})
    assert "| tokens x width | eigh [ms] | matrix products [ms] |" in page and "\n| 16 x 32 |" in page
