"""End-to-end FLOPs against what PyTorch counts while the model runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.vla.decoding import decode, prefill
from flashvla_ros.vla.policy import OpenVLAPolicy
from flashvla_ros.vla.sizes import model_size


@torch.inference_mode()
def test_arithmetic_agrees_with_the_matrix_products_that_are_run() -> None:
    policy = OpenVLAPolicy.load(ModelSettings(device="cpu", attention="eager"))
    model, size, actions = policy.model, model_size(policy.model.config), policy.action_size
    prompt = torch.tensor([policy.prompts("open the drawer")])
    pixels = torch.zeros(1, 6, *(2 * [model.config.towers[0].image_size]))
    for keep_ratio in (1.0, 0.625, 0.25):
        pruning = PruningSettings(method="random", keep_ratio=keep_ratio, layer=2)
        with FlopCounterMode(display=False) as counter:
            start = prefill(model, model.visual_tokens(pixels), prompt, actions - 1, pruning)
            decode(model, start, actions)
        assert start.kept is not None
        counted = size.inference_flops(len(start.kept), pruning.layer, prompt.shape[1], actions)
        assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)  # rotary angles are a product too
    draft = torch.zeros(1, actions, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        start = prefill(model, model.visual_tokens(pixels), prompt, actions - 1, pruning, draft=draft)
        decode(model, start, actions, draft[:, :2])
    kept = 0 if start.kept is None else len(start.kept)
    counted = size.inference_flops(kept, pruning.layer, prompt.shape[1], actions, drafted=actions - 1, settled=2)
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)
