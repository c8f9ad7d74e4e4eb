"""Smeared targets agree with the action codec, and the losses are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashvla_ros.vla.action_codec import ActionCodec
from training.architecture import DemoSize, demo_config
from training.loss import action_loss, look_loss, random_subset, smeared_bins, state_loss

CONFIG = demo_config(DemoSize())
BINS = CONFIG.n_action_bins - 1


@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=4, max_size=4))
def test_most_likely_token_decodes_to_the_action(action: list[float]) -> None:
    codec = ActionCodec(CONFIG.action_vocab_size, CONFIG.n_action_bins)
    target = smeared_bins(torch.tensor(action), BINS, sigma=4.0)
    tokens = CONFIG.action_vocab_size - 1 - target.argmax(-1).numpy()
    assert np.abs(codec.decode(tokens) - action).max() <= 1.0 / BINS + 1e-6


def test_targets_are_a_gaussian_of_the_given_width() -> None:
    target = smeared_bins(torch.tensor([0.0]), BINS, sigma=4.0)[0].double()
    offsets = torch.arange(BINS) - BINS // 2
    assert target.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (target * offsets**2).sum().sqrt().item() == pytest.approx(4.0, rel=1e-3)


def test_loss_is_zero_at_the_target_and_positive_elsewhere() -> None:
    target = smeared_bins(torch.tensor([[0.3, -1.0]]), BINS, sigma=4.0)
    logits = torch.full((1, 2, CONFIG.action_vocab_size), -1e4)
    logits[..., -BINS:] = target.clamp_min(1e-30).log().flip(-1)
    assert action_loss(logits, target).item() == pytest.approx(0.0, abs=1e-4)
    assert action_loss(logits.roll(1, dims=-1), target).item() > 0.01


def test_random_subsets_are_ascending_and_differ_between_samples() -> None:
    keep = random_subset(8, 64, 24, torch.Generator().manual_seed(0))
    assert keep.shape == (8, 24)
    assert bool((keep.diff(dim=1) > 0).all())
    assert len({tuple(row) for row in keep.tolist()}) == 8


def test_a_state_that_is_not_there_costs_nothing() -> None:
    predicted = torch.tensor([[1.0, 5.0], [0.0, 2.0]], requires_grad=True)
    loss = state_loss(predicted, torch.tensor([[0.0, torch.nan], [0.0, 0.0]]))
    assert loss.item() == pytest.approx((1.0 + 0.0 + 4.0) / 3)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 1] == 0.0


def test_looking_costs_nothing_where_the_thing_is_seen_and_much_elsewhere() -> None:
    seen = torch.tensor([[0.375, 0.625], [torch.nan, torch.nan]])  # the middle of the patch in row 1 and column 2 of 4
    attention = torch.full((2, 1, 16), -1e4)
    attention[0, 0, 4 + 2] = 0.0
    at, aside = look_loss(attention, seen), look_loss(attention.roll(1, dims=-1), seen)
    assert at.item() == pytest.approx(0.0, abs=1e-3)
    assert aside.item() > 100.0
