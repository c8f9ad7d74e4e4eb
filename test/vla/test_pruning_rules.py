"""Each published rule against a slow, obvious version of it, written from its source."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import random_model, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from flashvla_ros.bench.baselines import transformers_decoder
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.pruning.diversity import farthest_from_each_other, least_duplicated
from flashvla_ros.vla.pruning.probe import TokenStates, run_before_pruning
from flashvla_ros.vla.pruning.scores import centred, information_contribution
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.pruning.temporal import patch_cosines
from flashvla_ros.vla.query import Query

COUNT, WIDTH = 16, 32
PROMPT = torch.tensor([[1, *range(300, 312)]])
SEEDS = st.integers(0, 2**31)


def rows(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def cosine(one, other) -> float:
    one, other = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def divprune(tokens: torch.Tensor, k: int) -> list[int]:
    """DivPrune's algorithm 1 with 1 - cosine: the most isolated token first, then always the farthest one."""
    distance = [[1 - cosine(one, other) for other in tokens] for one in tokens]
    everyone = range(len(tokens))
    chosen = [max(everyone, key=lambda i: min(distance[i][j] for j in everyone if j != i))]
    while len(chosen) < k:
        rest = [i for i in everyone if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(distance[i][j] for j in chosen)))
    return chosen


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), st.integers(3, 12), SEEDS, st.data())
def test_divprune(count, size, seed, data):
    tokens = rows(count, size, seed)
    k = data.draw(st.integers(1, count))
    assert farthest_from_each_other(tokens, k).tolist() == divprune(tokens, k)


def test_divprune_never_takes_a_token_twice():
    assert sorted(farthest_from_each_other(torch.ones(8, 4), 8).tolist()) == list(range(8))


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(1, 11))
def test_divprune_depends_on_the_tokens_not_on_their_order(seed, k):
    """Of the two most isolated tokens, often each other's nearest, the first is chosen: let one stand out."""
    tokens = torch.cat([rows(11, 8, seed).abs(), -torch.ones(1, 8)])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    assert set(order[farthest_from_each_other(tokens[order], k)].tolist()) == set(divprune(tokens, k))


def dart(states: torch.Tensor, norms: torch.Tensor, count: int, k: int) -> list[int]:
    """DART's selection as released, but for its rounding of the number that each pivot adds."""
    visual = sorted(range(count), key=lambda i: -norms[i])[:4]
    text = sorted(range(count, len(states)), key=lambda i: -norms[i])[:4]
    if k <= 4:
        return sorted(visual[:k])
    kept, pivots = list(visual), sorted(visual) + sorted(text)
    share, rest = divmod(k - 4, len(pivots))
    for number, pivot in enumerate(pivots):
        candidates = [i for i in range(count) if i not in kept]
        candidates.sort(key=lambda i: cosine(states[pivot], states[i]))
        kept += candidates[: share + (number < rest)]
    return sorted(kept)


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 24), st.integers(1, 9), SEEDS, st.data())
def test_dart(count, text, seed, data):
    states, norms = rows(count + text, 8, seed), rows(count + text, 1, seed + 1)[:, 0].abs()
    k = data.draw(st.integers(1, count))
    assert sorted(least_duplicated(states, norms, count, k).tolist()) == dart(states, norms, count, k)


@pytest.fixture(scope="module")
def model() -> PrismaticVLM:
    return random_model(tiny_config())


@pytest.fixture(scope="module")
def eager(model) -> PrismaticVLM:
    """The same weights, with the attention implementation that returns its weights."""
    other = PrismaticVLM(model.config, "eager").eval()
    other.load_state_dict(model.state_dict())
    return other


def look(model: PrismaticVLM, layer: int, visual: torch.Tensor, similarity: torch.Tensor | None = None) -> TokenStates:
    with torch.inference_mode():
        hidden = model.embed(visual[None], PROMPT)
        rotary = model.rotary(hidden, torch.arange(hidden.shape[1])[None])
        query = Query(PROMPT[0].tolist(), PruningSettings(layer=layer), similarity=similarity)
        return run_before_pruning(model, hidden, query, rotary, None)[1]


def choose(method: str, seen: TokenStates, k: int, **changes) -> list[int]:
    with torch.inference_mode():
        return METHODS[method].select(seen, k, PruningSettings(method=method, **changes)).tolist()


def eager_weights(eager: PrismaticVLM, visual: torch.Tensor) -> list[torch.Tensor]:
    """Attention weights [H, L, L] of each layer, as transformers' own forward returns them."""
    with torch.inference_mode():
        output = transformers_decoder(eager)(inputs_embeds=eager.embed(visual[None], PROMPT), output_attentions=True)
    return [weights[0] for weights in output.attentions]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_fastv(model, eager, layer, seed):
    visual = rows(COUNT, WIDTH, seed)
    row = eager_weights(eager, visual)[max(layer - 1, 0)].mean(dim=0)[-1]
    seen = look(model, layer, visual)
    torch.testing.assert_close(seen.projections.last_attention, row, rtol=1e-4, atol=1e-6)
    scores = row[1 : 1 + COUNT].tolist()
    for k in (1, 6, 15):
        assert choose("fastv", seen, k) == sorted(sorted(range(COUNT), key=lambda i: -scores[i])[:k])


def test_attention_with_fewer_key_heads():
    sizes = {"num_key_value_heads": 1, "num_attention_heads": 4}
    config = tiny_config()
    config.text_config.update(sizes)
    grouped = random_model(config)
    other = PrismaticVLM(config, "eager").eval()
    other.load_state_dict(grouped.state_dict())
    visual = rows(COUNT, WIDTH, 0)
    seen = look(grouped, 2, visual)
    torch.testing.assert_close(
        seen.projections.last_attention, eager_weights(other, visual)[1].mean(dim=0)[-1], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_ics_values_scores_what_the_next_layer_would_read(model, layer):
    visual = rows(COUNT, WIDTH, 0)
    with torch.inference_mode():
        output = transformers_decoder(model)(
            inputs_embeds=model.embed(visual[None], PROMPT), use_cache=True, output_hidden_states=True
        )
    values = output.past_key_values.layers[layer].values[0, :, 1 : 1 + COUNT].transpose(0, 1).flatten(1).double()
    left, sizes, _ = torch.linalg.svd(values - values.mean(dim=0), full_matrices=False)
    scores = (left * sizes).abs().sum(dim=1)
    for k in (1, 6, 15):
        expected = sorted(sorted(range(COUNT), key=lambda i: -scores[i])[:k])
        assert choose("ics_values", look(model, layer, visual), k) == expected


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(0, COUNT - 1), st.floats(-100.0, 100.0))
def test_centring_gives_a_token_that_is_the_mean_of_all_no_score(seed, index, offset):
    """Large as its value is, attention gives that mean anyway."""
    values = rows(COUNT, 8, seed) + offset
    values[index] = torch.cat([values[:index], values[index + 1 :]]).mean(dim=0)
    scores = information_contribution(centred(values))
    assert scores[index] < 1e-2 * scores.max()


@pytest.mark.parametrize("layer", [0, 2])
def test_dart_reads_normed_states_and_the_keys_that_attention_used(model, layer):
    visual = rows(COUNT, WIDTH, 0)
    seen = look(model, layer, visual)
    with torch.inference_mode():
        output = transformers_decoder(model)(
            inputs_embeds=model.embed(visual[None], PROMPT), use_cache=True, output_hidden_states=True
        )
        states = model.language_model.model.norm(output.hidden_states[layer])[0, 1:]
    keys = output.past_key_values.layers[max(layer - 1, 0)].keys[0]
    norms = keys.transpose(0, 1).flatten(1).abs().sum(dim=1)[1:]
    for k in (2, 9, 15):
        assert choose("dart", seen, k) == dart(states, norms, COUNT, k)


def pictures(seed: int, changed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Two frames of 4 × 4 patches of 14 pixels; the given patches differ."""
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    after = before.copy()
    for patch in changed:
        row, column = divmod(patch, 4)
        area = np.s_[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        after[area] = rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return after, before


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.lists(st.integers(0, 15), unique=True))
def test_patch_cosines(seed, changed):
    after, before = pictures(seed, changed)
    found = patch_cosines(after, before, 4)
    for patch in range(16):
        row, column = divmod(patch, 4)
        area = np.s_[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        expected = cosine(after[area].ravel(), before[area].ravel())
        assert found[patch] == pytest.approx(expected, abs=1e-12)
        assert (found[patch] == 1.0) == (patch not in changed)


def test_a_black_patch_is_static_until_something_appears():
    dark, lit = np.zeros((28, 28, 3), dtype=np.uint8), np.zeros((28, 28, 3), dtype=np.uint8)
    lit[0, 0, 0] = 1
    assert patch_cosines(lit, dark, 2).tolist() == [0.0, 1.0, 1.0, 1.0]


def test_temporal_keeps_what_changed_and_fills_up_in_one_fixed_order(model):
    def kept(changed: list[int], k: int, seed: int = 0) -> set[int]:
        cosines = torch.from_numpy(patch_cosines(*pictures(0, changed), 4))
        return set(choose("temporal", look(model, 2, rows(COUNT, WIDTH, 0), cosines), k, seed=seed))

    assert kept([3, 7, 8], 3) == {3, 7, 8}
    static = kept([], 5)
    assert {3, 7, 8} <= kept([3, 7, 8], 8)
    assert kept([3, 7, 8], 8) - {3, 7, 8} <= static | kept([], 8)
    assert static != kept([], 5, seed=1)


def test_without_a_frame_before_nothing_is_known_to_be_static(model):
    assert choose("temporal", look(model, 2, rows(COUNT, WIDTH, 0)), 5) == list(range(COUNT))


def test_published_rules_say_where_they_come_from_and_what_they_need():
    for name, method in METHODS.items():
        assert ("arXiv" in method.source) != (method.source == "control"), name
    assert [name for name, method in METHODS.items() if method.needs_attention] == ["fastv"]
    assert [name for name, method in METHODS.items() if method.needs_frame] == ["temporal"]


def test_documentation_has_the_same_table():
    page = (Path(__file__).parents[2] / "docs" / "pruning-and-engine.md").read_text(encoding="utf-8")
    for name, method in METHODS.items():
        needs = "yes" if method.needs_attention else "no"
        assert f"| `{name}` | {method.source} | {method.reads} | {method.reads_at_0} | {needs} |\n" in page
