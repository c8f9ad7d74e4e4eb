from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PruningSettings, find
from flashvla_ros.vla.pruning.scores import information_contribution, row_norm
from flashvla_ros.vla.pruning.select import SELECTORS, LayerView, check_layer, kept_count, top_k


def tokens(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def reference(matrix: torch.Tensor, rank: int = 0) -> torch.Tensor:
    """The definition: the full decomposition in float64."""
    left, values, _ = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (left * values)[:, : rank or None].abs().sum(dim=1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("count", "size"), [(64, 512), (64, 32), (49, 49)])
def test_kept_tokens_are_those_of_the_full_decomposition(count, size, seed):
    matrix = tokens(count, size, seed)
    for k in (1, count // 4, count * 5 // 8, count - 1):
        assert torch.equal(top_k(information_contribution(matrix), k), top_k(reference(matrix), k))


def test_openvlas_own_size():
    matrix = tokens(256, 4096, 0)
    assert torch.equal(top_k(information_contribution(matrix), 160), top_k(reference(matrix), 160))


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**31), st.floats(1e-3, 1e3), st.data())
def test_scores_are_those_of_the_full_decomposition(count, size, seed, scale, data):
    rank = data.draw(st.integers(0, min(count, size)))
    matrix = tokens(count, size, seed) * scale
    expected = reference(matrix, rank)
    torch.testing.assert_close(
        information_contribution(matrix, rank).double(), expected, rtol=1e-3, atol=1e-3 * float(expected.max())
    )


def test_rank_counts_the_largest_singular_values():
    matrix = torch.diag(torch.tensor([1.0, 4.0, 2.0, 3.0]))
    assert torch.allclose(information_contribution(matrix, 2), torch.tensor([0.0, 4.0, 0.0, 3.0]), atol=1e-5)


def test_half_precision_is_scored_in_float32():
    assert information_contribution(tokens(8, 16, 0).bfloat16()).dtype == torch.float32
    assert row_norm(tokens(8, 16, 0).bfloat16()).dtype == torch.float32


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 1.0), st.integers(1, 1000))
def test_kept_count_is_the_nearest_and_never_zero(ratio, count):
    k = kept_count(ratio, count)
    assert 1 <= k <= count
    assert k == 1 or abs(k - ratio * count) <= 0.5
    assert kept_count(1.0, count) == count


def test_published_budget():
    assert kept_count(0.625, 256) == 160


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_top_k_keeps_the_order_and_prefers_the_first_of_equals(values, data):
    k = data.draw(st.integers(1, len(values)))
    kept = top_k(torch.tensor(values, dtype=torch.float32), k).tolist()
    assert kept == sorted(sorted(range(len(values)), key=lambda index: (-values[index], index))[:k])


def test_parameter_offers_what_there_is():
    assert set(find("pruning.method").choices) == {*SELECTORS, "none"}


VIEW = LayerView(embeddings=tokens(16, 8, 0), attention=tokens(16, 8, 1), hidden=tokens(16, 8, 2))


@pytest.mark.parametrize("method", sorted(SELECTORS))
def test_every_method_returns_k_ascending_indices(method):
    kept = SELECTORS[method](VIEW, 5, PruningSettings(method=method), 0).tolist()
    assert len(kept) == 5
    assert kept == sorted(set(kept))
    assert set(kept) <= set(range(16))


def test_methods_look_at_what_they_say():
    pick = {method: SELECTORS[method](VIEW, 5, PruningSettings(), 0) for method in SELECTORS}
    assert torch.equal(pick["ics"], top_k(information_contribution(VIEW.attention), 5))
    assert torch.equal(pick["ics_hidden"], top_k(information_contribution(VIEW.hidden), 5))
    assert torch.equal(pick["norm"], top_k(row_norm(VIEW.attention), 5))


def test_random_depends_on_seed_and_observation_alone():
    def choose(seed: int, key: int) -> list[int]:
        return SELECTORS["random"](VIEW, 8, PruningSettings(seed=seed), key).tolist()

    assert choose(0, 7) == choose(0, 7)
    assert len({tuple(choose(seed, key)) for seed in range(4) for key in range(4)}) > 12


def test_layer_beyond_the_decoder_is_refused():
    check_layer(PruningSettings(layer=3), 4)
    check_layer(PruningSettings(method="none", layer=99), 4)
    with pytest.raises(SettingsError, match=r"pruning\.layer must be below 4.*got 4"):
        check_layer(PruningSettings(layer=4), 4)
