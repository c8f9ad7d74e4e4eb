from __future__ import annotations

import pytest
import torch
from checkpoints import random_model, tiny_config

from flashvla_ros.bench.baselines import transformers_decoder
from flashvla_ros.core.errors import SettingsError
from flashvla_ros.core.settings import PruningSettings
from flashvla_ros.vla.decoding import decode, prefill
from flashvla_ros.vla.model import PrismaticVLM
from flashvla_ros.vla.pruning.select import METHODS
from flashvla_ros.vla.query import Query
from training.forcing import action_logits

NONE = PruningSettings(method="none")
PROMPT = torch.tensor([[1, *range(300, 312)]])
SIMILARITY = torch.rand(16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def model() -> PrismaticVLM:
    return random_model(tiny_config())


@pytest.fixture(scope="module")
def visual(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.visual_tokens(torch.randn(1, 6, 56, 56, generator=torch.Generator().manual_seed(1)))


def run(model: PrismaticVLM, visual: torch.Tensor, pruning: PruningSettings, count: int = 5):
    with torch.inference_mode():
        start = prefill(model, visual, Query(PROMPT[0].tolist(), pruning, similarity=SIMILARITY), count)
        return start, decode(model, start, count).tokens


def test_no_pruning_equals_transformers_bit_for_bit(model, visual):
    start, tokens = run(model, visual, NONE)
    assert start.kept is None
    sequence, reference = PROMPT, transformers_decoder(model)
    for step in range(5):
        with torch.inference_mode():
            embeddings = model.embed(visual, sequence)
            plain = reference(inputs_embeds=embeddings, logits_to_keep=1).logits
        if step == 0:
            assert torch.equal(start.logits, plain)
        assert tokens[step] == plain.argmax()
        sequence = torch.cat([sequence, plain.argmax(-1)], dim=1)


def test_cached_logits_equal_those_of_transformers_cache(model, visual):
    start, tokens = run(model, visual, NONE)
    reference = transformers_decoder(model)
    with torch.inference_mode():
        plain = reference(inputs_embeds=model.embed(visual, PROMPT), use_cache=True, logits_to_keep=1)
        fresh = prefill(model, visual, Query(PROMPT[0].tolist(), NONE), 2)
        again = reference(input_ids=tokens[None, :1], past_key_values=plain.past_key_values)
        rotary = model.rotary(start.hidden[None], torch.tensor([[start.length]]))
        hidden = model.language_model.model.embed_tokens(tokens[None, :1])
        ours = model.logits(model.run_layers(hidden, range(4), rotary, fresh.cache))
    assert torch.equal(ours, again.logits)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_keeping_all_tokens_changes_no_bit(model, visual, method, layer):
    plain, tokens = run(model, visual, NONE)
    start, same = run(model, visual, PruningSettings(method=method, keep_ratio=1.0, layer=layer))
    assert torch.equal(start.logits, plain.logits)
    assert torch.equal(same, tokens)
    assert start.kept.tolist() == list(range(16))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_selecting_without_dropping_changes_no_bit(model, visual, method):
    plain, tokens = run(model, visual, NONE)
    dropped, _ = run(model, visual, PruningSettings(method=method, keep_ratio=0.5))
    start, same = run(model, visual, PruningSettings(method=method, keep_ratio=0.5, drop=False))
    assert torch.equal(start.logits, plain.logits)
    assert torch.equal(same, tokens)
    assert torch.equal(start.kept, dropped.kept)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_pruned_decoding_is_what_training_with_dropped_tokens_sees(model, visual, method, layer, attention):
    """Caches of different lengths and original positions, against one forward over the whole sequence."""
    model = model if attention == "sdpa" else same_weights(model, attention)
    start, tokens = run(model, visual, PruningSettings(method=method, keep_ratio=0.375, layer=layer))
    assert len(start.kept) == 6
    with torch.inference_mode():
        logits = action_logits(model, visual, PROMPT, tokens[None], keep=start.kept[None], layer=layer)
    torch.testing.assert_close(start.logits[0, 0], logits[0, 0], rtol=1e-4, atol=1e-4)
    assert tokens.tolist() == logits[0].argmax(-1).tolist()


def same_weights(model: PrismaticVLM, attention: str) -> PrismaticVLM:
    other = PrismaticVLM(model.config, attention).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_later_layers_hold_only_the_kept_tokens(model, visual, layer):
    start, _ = run(model, visual, PruningSettings(keep_ratio=0.25, layer=layer), count=3)
    nothing = torch.zeros(1, 2, 0, 16)
    with torch.inference_mode():
        keys = [start.cache.update(nothing, nothing, layer)[0].shape[2] for layer in range(4)]
    full = PROMPT.shape[1] + 16 + 2
    assert keys == [full] * layer + [full - 12] * (4 - layer)


def test_pruning_changes_the_result(model, visual):
    plain, _ = run(model, visual, NONE)
    pruned, _ = run(model, visual, PruningSettings(keep_ratio=0.25))
    assert not torch.equal(plain.logits, pruned.logits)


def test_one_token_needs_no_step(model, visual):
    start, tokens = run(model, visual, NONE, count=1)
    assert tokens.tolist() == [int(start.logits.argmax())]


def test_layer_beyond_the_decoder_is_refused(model, visual):
    with pytest.raises(SettingsError, match=r"pruning\.layer must be below 4"):
        run(model, visual, PruningSettings(layer=4))
