from __future__ import annotations

import dataclasses

import pytest
import torch
from checkpoints import random_model, tiny_config
from torch.testing import assert_close

from flashvla_ros.bench.baselines import transformers_decoder
from flashvla_ros.vla.config import OpenVLAConfig
from flashvla_ros.vla.model import PrismaticVLM
from training.forcing import action_logits, mask_of, pad_prompts

PROMPT = [1, *range(300, 310)]
ACTIONS = torch.tensor([[900, 950, 1000, 1020], [801, 802, 803, 804]])


def images(channels: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, 56, 56, generator=torch.Generator().manual_seed(3))


def prompts(count: int = 2) -> torch.Tensor:
    return torch.tensor([PROMPT] * count)


def forced(
    model: PrismaticVLM, pixels: torch.Tensor, *arguments: torch.Tensor, **masks: torch.Tensor | None
) -> torch.Tensor:
    return action_logits(model, model.visual_tokens(pixels), *arguments, **masks)


def config_with(**text: object) -> OpenVLAConfig:
    config = tiny_config()
    return dataclasses.replace(config, text_config={**config.text_config, **text})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(fused=False),
        config_with(num_key_value_heads=1),
        config_with(head_dim=6, attention_bias=True, mlp_bias=True),
        config_with(rope_theta=500.0, rms_norm_eps=1e-3, hidden_act="gelu_pytorch_tanh"),
        config_with(tie_word_embeddings=True),
    ],
    ids=["fused", "one tower", "grouped", "biased", "other numbers", "tied"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_equals_transformers_bit_for_bit(config, attention, dtype):
    source = random_model(config)
    model = PrismaticVLM(source.config, attention).to(dtype)
    model.load_state_dict(source.state_dict())
    pixels = images(6 if config.fused else 3).to(dtype)
    with torch.inference_mode():
        logits = forced(model, pixels, prompts(), ACTIONS)
        sequence = torch.cat([prompts(), ACTIONS[:, :-1]], dim=1)
        embeddings = model.embed(model.visual_tokens(pixels), sequence)
        plain = transformers_decoder(model)(inputs_embeds=embeddings, logits_to_keep=4).logits
    assert logits.shape == (2, 4, 1088)
    assert torch.equal(logits, plain)


def test_visual_tokens_go_right_after_bos():
    model = random_model(tiny_config())
    visual = torch.full((1, 16, 32), 7.0)
    embedded = model.embed(visual, prompts(1))
    table = model.language_model.model.embed_tokens.weight
    assert torch.equal(embedded[0, 0], table[1])
    assert torch.equal(embedded[0, 1:17], visual[0])
    assert torch.equal(embedded[0, 17:], table[300:310])


def test_each_tower_sees_its_own_channels():
    model = random_model(tiny_config())
    pixels = images(6)
    changed = pixels.clone()
    changed[:, 3:] += 1.0
    before, after = model.patch_features(pixels), model.patch_features(changed)
    assert torch.equal(before[..., :32], after[..., :32])
    assert not torch.equal(before[..., 32:], after[..., 32:])


def test_keeping_every_token_changes_no_bit():
    model = random_model(tiny_config())
    keep = torch.arange(16).expand(2, -1)
    assert torch.equal(
        forced(model, images(6), prompts(), ACTIONS, keep=keep), forced(model, images(6), prompts(), ACTIONS)
    )


def test_dropped_tokens_reach_only_the_layers_before():
    """Later layers without a token give what masking that token's keys there gives."""
    model = random_model(tiny_config())
    keep = torch.tensor([[0, 3, 4, 11], [1, 2, 14, 15]])
    visual = model.visual_tokens(images(6))
    dropped = action_logits(model, visual, prompts(), ACTIONS, keep=keep, layer=2)

    hidden = model.embed(visual, torch.cat([prompts(), ACTIONS[:, :-1]], dim=1))
    length = hidden.shape[1]
    rotary = model.rotary(hidden, torch.arange(length)[None])
    seen = torch.ones(2, length, dtype=torch.bool)
    seen[:, 1:17] = False
    seen[:, 1:17].scatter_(1, keep, True)
    hidden = model.run_layers(hidden, range(2), rotary)
    hidden = model.run_layers(hidden, range(2, 4), rotary, mask=mask_of(seen, full=False))
    assert_close(dropped, model.logits(hidden[:, -4:]), rtol=1e-4, atol=1e-4)


def test_padding_between_bos_and_text_changes_nothing():
    model = random_model(tiny_config())
    short, long = [1, *range(300, 305)], PROMPT
    ids, mask = pad_prompts([short, long], pad_id=1024)
    keep = torch.tensor([[0, 3, 4, 11], [1, 2, 14, 15]])
    for chosen in (None, keep):
        batch = forced(model, images(6), ids, ACTIONS, attention_mask=mask, keep=chosen)
        for row, prompt in enumerate((short, long)):
            own = None if chosen is None else chosen[row : row + 1]
            alone = forced(model, images(6)[row : row + 1], torch.tensor([prompt]), ACTIONS[row : row + 1], keep=own)
            assert_close(batch[row], alone[0], rtol=1e-4, atol=1e-4)


def test_every_parameter_learns():
    model = PrismaticVLM(tiny_config())
    keep = torch.tensor([[0, 3, 4, 11], [1, 2, 14, 15]])
    logits = forced(model, images(6), prompts(), ACTIONS, keep=keep)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ACTIONS.flatten()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_prompts_are_padded_after_bos():
    ids, mask = pad_prompts([[1, 5], [1, 6, 7, 8]], pad_id=9)
    assert ids.tolist() == [[1, 9, 9, 5], [1, 6, 7, 8]]
    assert mask.tolist() == [[True, False, False, True], [True] * 4]
