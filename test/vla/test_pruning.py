from __future__ import annotations

import pytest
import torch
from checkpoints import random_model, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PruningSettings, find
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.pruning.probe import TokenStates, run_before_pruning
from flashvla_ros.vla.pruning.scores import information_contribution, row_norm
from flashvla_ros.vla.pruning.select import METHODS, check_layer, kept_count, top_k
from flashvla_ros.vla.query import Query


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
    assert torch.allclose(information_contribution(matrix, 2), torch.tensor([0.0, 4.0, 0.0, 3.0]).double(), atol=1e-5)


def test_half_precision_is_scored_in_a_wider_type():
    assert information_contribution(tokens(8, 16, 0).bfloat16()).dtype == torch.float64
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


PROMPT = torch.tensor([[1, *range(300, 312)]])


@pytest.fixture(scope="module")
def model() -> PrismaticVLM:
    return random_model(tiny_config())


def look(
    model: PrismaticVLM, layer: int, visual: torch.Tensor | None = None, key: int = 0, seed: int = 0
) -> TokenStates:
    """What the methods see of 16 visual tokens in front of a layer."""
    visual = tokens(16, 32, seed) if visual is None else visual
    with torch.inference_mode():
        hidden = model.embed(visual[None], PROMPT)
        rotary = model.rotary(hidden, torch.arange(hidden.shape[1])[None])
        similarity = torch.rand(16, generator=torch.Generator().manual_seed(seed))
        query = Query(PROMPT[0].tolist(), PruningSettings(layer=layer), key=key, similarity=similarity)
        return run_before_pruning(model, hidden, query, rotary, None)[1]


def choose(method: str, seen: TokenStates, k: int = 5, **changes) -> list[int]:
    with torch.inference_mode():
        return METHODS[method].select(seen, k, PruningSettings(method=method, **changes)).tolist()


def test_parameter_offers_what_there_is():
    assert set(find("pruning.method").choices) == {*METHODS, "none"}


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(METHODS)), st.integers(0, 3), st.integers(1, 16), st.integers(0, 2**31))
def test_every_method_returns_k_ascending_indices_and_the_same_again(model, method, layer, k, seed):
    kept = choose(method, look(model, layer, seed=seed), k)
    assert len(kept) == k
    assert kept == sorted(set(kept))
    assert set(kept) <= set(range(16))
    assert kept == choose(method, look(model, layer, seed=seed), k)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("scene", ["zeros", "equal", "two of a kind", "one outlier"])
def test_degenerate_scenes_still_give_k_tokens(model, method, layer, scene):
    visual = torch.zeros(16, 32)
    if scene == "equal":
        visual += tokens(1, 32, 0)
    elif scene == "two of a kind":
        visual[::2] = tokens(1, 32, 0)
    elif scene == "one outlier":
        visual[3, 0] = 1e4
    for k in (1, 7, 15):
        assert len(set(choose(method, look(model, layer, visual), k))) == k


def test_methods_look_at_what_they_say(model):
    seen = look(model, 2)
    assert choose("ics", seen) == top_k(information_contribution(seen.attention), 5).tolist()
    assert choose("ics_hidden", seen) == top_k(information_contribution(seen.hidden), 5).tolist()
    assert choose("norm", seen) == top_k(row_norm(seen.attention), 5).tolist()


def test_before_the_decoder_methods_look_at_the_projector_output(model):
    seen = look(model, 0)
    visual = tokens(16, 32, 0)
    for rows in (seen.embeddings, seen.attention, seen.hidden):
        assert torch.equal(rows, visual)
    assert choose("ics", seen) == choose("ics_hidden", seen) == top_k(information_contribution(visual), 5).tolist()
    assert seen.projections.index == 0


def test_random_depends_on_seed_and_observation_alone(model):
    looks = [look(model, 2, key=key) for key in range(4)]
    assert choose("random", looks[1], 8) == choose("random", look(model, 1, key=1, seed=9), 8)
    assert len({tuple(choose("random", seen, 8, seed=seed)) for seed in range(4) for seen in looks}) > 12


def test_layer_beyond_the_decoder_is_refused():
    check_layer(PruningSettings(layer=3), 4)
    check_layer(PruningSettings(method="none", layer=99), 4)
    with pytest.raises(SettingsError, match=r"pruning\.layer must be below 4.*got 4"):
        check_layer(PruningSettings(layer=4), 4)
