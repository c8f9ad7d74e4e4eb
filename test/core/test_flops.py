"""Visual-token FLOPs against figures of the paper's own model."""

from __future__ import annotations

import pytest

from flashvla_ros.core.flops import DecoderSize

LLAMA_7B = DecoderSize(layers=32, width=4096, inner=11008)


def test_one_layer_by_hand():
    assert DecoderSize(layers=1, width=2, inner=3).layer_flops(5) == 5 * (4 * 4 + 2 * 2 * 3) + 2 * 25 * 2


def test_openvla_with_160_of_256_tokens_from_layer_2_on():
    assert LLAMA_7B.visual_share(256, 160, 2) == pytest.approx(0.646, abs=5e-4)


def test_nothing_dropped_costs_everything():
    assert LLAMA_7B.visual_share(256, 256, 2) == 1.0
    assert LLAMA_7B.visual_share(256, 10, 32) == LLAMA_7B.visual_share(256, 10, 99) == 1.0


def test_sizes_travel_as_one_word():
    assert str(LLAMA_7B) == "32x4096x11008"
    assert DecoderSize.parse(str(LLAMA_7B)) == LLAMA_7B
    for text in ("", "32", "32x4096", "0x1x1", "axbxc"):
        with pytest.raises(ValueError):  # noqa: PT011  # three kinds of it
            DecoderSize.parse(text)


def test_less_is_cheaper():
    shares = [LLAMA_7B.visual_share(256, kept, 2) for kept in (16, 64, 160, 256)]
    assert shares == sorted(shares)
    assert shares[0] > 2 / 32
