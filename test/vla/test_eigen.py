"""Eigenvectors by matrix products: what CUDA scores tokens with, here on the CPU against LAPACK."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flashvla_ros.bench.trace import load_observations
from flashvla_ros.core.policy import Request
from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.pruning import scores, select
from flashvla_ros.vla.pruning.eigen import eigh_by_lapack, eigh_by_products
from flashvla_ros.vla.pruning.scores import contribution_along

SPECTRA = {
    "noise": lambda index: torch.ones_like(index),
    "1/i": lambda index: 1 / (index + 1),
    "exponential": lambda index: torch.exp(-index / 20),
    "two levels": lambda index: torch.where(index < 5, 10.0, 1.0),
}


def rows_of(spectrum: str, count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator)
    if spectrum == "noise":
        return rows
    left, _, right = torch.linalg.svd(rows, full_matrices=False)
    return left * SPECTRA[spectrum](torch.arange(min(count, width)).float()) @ right


def smaller_gram(rows: torch.Tensor) -> torch.Tensor:
    return rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows


def by_products(rows: torch.Tensor, rank: int = 0) -> torch.Tensor:
    return contribution_along(rows, *eigh_by_products(smaller_gram(rows)), rank)


def by_svd(rows: torch.Tensor, rank: int = 0) -> torch.Tensor:
    left, values, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    return (left * values)[:, : rank or None].abs().sum(dim=1)


def overlap(one: torch.Tensor, other: torch.Tensor, ratio: float) -> float:
    k = select.kept_count(ratio, len(one))
    return len({*one.topk(k).indices.tolist()} & {*other.topk(k).indices.tolist()}) / k


@pytest.mark.parametrize("ratio", [0.625, 0.5, 0.25])
@pytest.mark.parametrize("shape", [(64, 128), (144, 128), (256, 384)], ids=str)
@pytest.mark.parametrize("spectrum", ["noise", "1/i", "exponential"])
def test_keeps_the_tokens_of_the_full_decomposition(spectrum, shape, ratio):
    rows = rows_of(spectrum, *shape)
    assert overlap(by_products(rows), by_svd(rows), ratio) >= 0.98


def test_a_rank_counts_the_largest_singular_values():
    rows = rows_of("1/i", 64, 128)
    for rank in (1, 4, 16):
        torch.testing.assert_close(by_products(rows, rank).double(), by_svd(rows, rank), rtol=1e-2, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 48), st.integers(1, 48), st.integers(0, 2**31), st.sampled_from(sorted(SPECTRA)))
def test_any_matrix_comes_out_diagonal(count, width, seed, spectrum):
    gram = smaller_gram(rows_of(spectrum, count, width, seed)).float()
    values, vectors = eigh_by_products(gram)
    scale = float(gram.trace())
    turned = vectors.T @ gram @ vectors
    torch.testing.assert_close(turned, torch.diag(values), rtol=0, atol=1e-3 * scale)
    torch.testing.assert_close(values.sort().values, torch.linalg.eigvalsh(gram), rtol=0, atol=1e-3 * scale)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(gram)), rtol=0, atol=1e-2)


def test_equal_rows_nothing_at_all_and_one_row():
    rows = rows_of("1/i", 40, 128)
    twice = torch.cat([rows, rows])
    assert overlap(by_products(twice), by_svd(twice), 0.5) >= 0.97
    assert torch.equal(by_products(torch.zeros(16, 32)), torch.zeros(16))
    torch.testing.assert_close(by_products(torch.ones(1, 9)), torch.tensor([3.0]))
    torch.testing.assert_close(by_products(torch.ones(16, 9)), torch.full((16,), 3.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["ics", "ics_hidden", "ics_values"])
def test_a_trained_policys_tokens_are_kept_alike(method, monkeypatch):
    """The whole rule as CUDA runs it, on frames of the demo: the kept sets, not the scores, must be the same."""
    policy = OpenVLAPolicy.load(ModelSettings(device="cpu", threads=1))
    pruning = PruningSettings(method=method)
    seen = load_observations("open the drawer")[:2]
    expected = [policy.infer(Request(one, pruning)).kept for one in seen]
    monkeypatch.setattr(scores, "wide", Tensor.float)
    monkeypatch.setattr("torch.linalg.eigh", eigh_by_products)
    for one, kept in zip(seen, expected, strict=True):
        assert len({*policy.infer(Request(one, pruning)).kept} & {*kept}) / len(kept) >= 0.98


def test_lapack_is_asked_on_one_thread_and_the_others_are_given_back() -> None:
    seen: list[int] = []
    real, threads = torch.linalg.eigh, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.linalg, "eigh", lambda matrix: (seen.append(torch.get_num_threads()), real(matrix))[1])
            values, _ = eigh_by_lapack(torch.eye(3))
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(threads)
    assert values.tolist() == [1.0, 1.0, 1.0]
