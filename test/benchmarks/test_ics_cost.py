"""The ways to score tokens that ics_cost compares: what each keeps, and which a CUDA graph could hold."""

from __future__ import annotations

import pytest
import torch

from benchmarks.ics import KEPT, line, measure
from benchmarks.ics_ways import WAYS, by_square_root, by_svd_64
from benchmarks.token_samples import sampled_tokens


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    with torch.inference_mode():
        return {row["name"]: row for row in measure([(144, 128)], torch.device("cpu"), 0.0)}


def test_the_way_of_each_device_keeps_a_trained_policys_tokens(rows):
    for name in ("SVD", "eigh of the Gram matrix", "matrix products, 24 iterations"):
        assert min(rows[name]["overlap_policy"]) >= 0.99, name
        assert min(min(kept) for kept in rows[name]["overlap"].values()) >= 0.97, name


def test_shortcuts_do_not_and_a_line_says_so(rows):
    for name in ("row norm (control)", "diagonal of the square root, 20 iterations", "subspace of 32, 8 iterations"):
        assert max(rows[name]["overlap_policy"]) < 0.97, name
    printed = line(rows["SVD"])
    assert printed.startswith("| 144 x 128 | SVD |") and printed.count("|") == 4 + 2 * len(KEPT)


def test_the_square_root_is_the_square_root():
    tokens = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    left, values, _ = torch.linalg.svd(tokens.double(), full_matrices=False)
    expected = (left.square() * values).sum(dim=1)
    torch.testing.assert_close(by_square_root(tokens, 20).double(), expected, rtol=1e-3, atol=0)


def test_what_counts_as_recordable_needs_no_value():
    """The meta device has none to give."""
    tokens = torch.empty(8, 16, device="meta")
    assert [way.score(tokens).shape for way in WAYS if way.recordable] == [(8,)] * 6


def test_samples_are_what_the_methods_score():
    samples = sampled_tokens()
    assert len({tuple(one.shape) for one in samples}) == 1 and len(samples) == 16
    assert abs(float(samples[1].mean(dim=0).abs().max())) < 1e-4  # values come less their mean
    assert (by_svd_64(samples[0]) > 0).all()
