"""End-to-end FLOPs against what PyTorch counts while the model runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flashvla_ros.core.settings import ModelSettings, PruningSettings
from flashvla_ros.vla.arch.openvla.policy import OpenVLAPolicy
from flashvla_ros.vla.config import model_size
from flashvla_ros.vla.decoding import decode, prefill
from flashvla_ros.vla.query import Query


@torch.inference_mode()
def test_arithmetic_agrees_with_the_matrix_products_that_are_run() -> None:
    policy = OpenVLAPolicy.load(ModelSettings(device="cpu", attention="eager"))
    model, size, actions = policy.model, model_size(policy.model.config), policy.action_size
    prompt = policy.prompts("open the drawer")
    pixels = torch.zeros(1, 6, *(2 * [model.config.towers[0].image_size]))
    for keep_ratio in (1.0, 0.625, 0.25):
        pruning = PruningSettings(method="random", keep_ratio=keep_ratio, layer=2)
        with FlopCounterMode(display=False) as counter:
            start = prefill(model, model.visual_tokens(pixels), Query(prompt, pruning), actions)
            decode(model, start, actions)
        assert start.kept is not None
        counted = size.inference_flops(len(start.kept), pruning.layer, len(prompt), actions)
        assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)  # rotary angles are a product too
    query = Query(prompt, pruning, [0] * actions)
    with FlopCounterMode(display=False) as counter:
        start = prefill(model, model.visual_tokens(pixels), query, actions)
        decode(model, start, actions, torch.zeros(1, 2, dtype=torch.long))
    kept = 0 if start.kept is None else len(start.kept)
    counted = size.inference_flops(kept, pruning.layer, len(prompt), actions, drafted=actions - 1, settled=2)
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3)
