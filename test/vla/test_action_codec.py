from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flashvla_ros.core.errors import CheckpointError
from flashvla_ros.vla.action_codec import ActionCodec
from flashvla_ros.vla.statistics import Bounds

CODEC = ActionCodec(1024, 256)
HALF_BIN = 1.0 / 255
UNIT = st.floats(-1.0, 1.0)


def test_tokens_of_the_published_vocabulary():
    codec = ActionCodec(32000, 256)
    assert codec.decode([31999]) == pytest.approx(-1 + HALF_BIN)
    assert codec.decode([31745]) == pytest.approx(1 - HALF_BIN)
    assert codec.decode([31872]) == pytest.approx(0.0)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (4,), elements=UNIT))
def test_every_value_is_within_half_a_bin_of_a_token(values):
    bins = CODEC.decode(np.arange(769, 1024))
    assert np.abs(bins - values[:, None]).min(axis=1).max() <= HALF_BIN + 1e-12


@settings(max_examples=50, deadline=None)
@given(st.integers(769, 1022))
def test_the_next_token_is_one_bin_less(token):
    assert CODEC.decode(token) - CODEC.decode(token + 1) == pytest.approx(2 * HALF_BIN)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1087))
def test_any_token_decodes_inside_the_range(token):
    value = CODEC.decode(token)
    assert abs(value) <= 1 - HALF_BIN + 1e-12
    if token > 1023:
        assert value == CODEC.decode(1023)
    if token < 769:
        assert value == CODEC.decode(769)


def test_masked_dimension_is_not_scaled():
    stats = {"toy": {"action": {"q01": [0.0, 0.0], "q99": [10.0, 10.0], "mask": [True, False]}}}
    assert Bounds.from_statistics(stats).unnormalize([0.5, 0.5]).tolist() == [7.5, 0.5]


@pytest.mark.parametrize(("low", "high"), [(float("nan"), 1.0), (2.0, 1.0), (0.0, float("inf"))])
def test_statistics_that_no_mask_uses_may_be_anything(low, high):
    stats = {"toy": {"action": {"q01": [0.0, low], "q99": [10.0, high], "mask": [1, 0]}}}
    assert Bounds.from_statistics(stats).unnormalize([0.5, 0.5]).tolist() == [7.5, 0.5]


def test_dimension_that_never_moves_stays_where_it_is():
    stats = {"toy": {"action": {"q01": [3.0], "q99": [3.0]}}}
    assert Bounds.from_statistics(stats).unnormalize([0.7]) == 3.0


ONE = {"action": {"q01": [0.0], "q99": [1.0]}}


@pytest.mark.parametrize(
    ("stats", "key", "message"),
    [
        ({"a": ONE, "b": ONE}, "", "set model.unnorm_key to one of a, b"),
        ({"a": ONE, "b": ONE}, "c", "'c' is not among the checkpoint's data sets: a, b"),
        ({"a": {}}, "", "'a' lacks 'action'"),
        ({"a": {"action": {"q01": [0.0]}}}, "", "lacks q99"),
        ({"a": {"action": {"mean": [0.0]}}}, "", "lacks q01 and q99"),
        ({"a": {"action": {"q01": [0.0], "q99": [1.0, 2.0]}}}, "", "one value for each action dimension"),
        ({"a": {"action": {"q01": ["low"], "q99": [1.0]}}}, "", "lists of numbers"),
        ({"a": {"action": {"q01": [2.0], "q99": [1.0]}}}, "", "q01 at most q99"),
        ({"a": {"action": {"q01": [float("nan")], "q99": [1.0]}}}, "", "must be finite"),
        ({"a": {"action": {"q01": [0], "q99": [10**400]}}}, "", "lists of numbers"),
    ],
)
def test_unusable_statistics_are_named(stats, key, message):
    with pytest.raises(CheckpointError, match=message):
        Bounds.from_statistics(stats, key)


def test_key_chooses_the_data_set():
    stats = {"a": ONE, "b": {"action": {"q01": [0.0, 0.0], "q99": [1.0, 1.0]}}}
    assert Bounds.from_statistics(stats, "b").size == 2


@pytest.mark.parametrize("std", [-1.0, float("nan")])
def test_a_deviation_below_zero_is_named_as_one(std):
    stats = {"a": {"action": {"mean": [2.0], "std": [std]}}}
    with pytest.raises(CheckpointError, match="mean and std must be finite, and std not below 0"):
        Bounds.from_statistics(stats, "a", kind="mean_std")
